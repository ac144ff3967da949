"""Connections of hostile clients: heads too large, heads, bodies and readers too slow, too many at once."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from service.cli.guard import MAX_FIELDS, MAX_HEAD_BYTES, MAX_PIPELINED
from service.model.backbone import Backbone
from tests.api.live import Live, running, settings_for
from tests.bundles import random_bundle
from tests.synthesis import encode, noise
from tests.waiting import soon

HEAD_SECONDS = 1.0
REQUEST_SECONDS = 0.6
ENOUGH = 6.0  # seconds past a deadline, on a busy machine
POST = b"POST /v1/classify?adapter=alpha HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def guarded(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """With all the time that a busy machine may take."""
    directory = tmp_path_factory.mktemp("guarded")
    with running(settings_for(tiny_ast_dir, directory / "data", max_connections=20)) as service:
        service.publish(directory, "alpha")
        yield service


@pytest.fixture(scope="module")
def hasty(tiny_ast: Backbone, tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    directory = tmp_path_factory.mktemp("hasty")
    random_bundle(directory / "bundles", tiny_ast.spec, "alpha")
    times = {"head_timeout": HEAD_SECONDS, "request_timeout": REQUEST_SECONDS}
    with running(settings_for(tiny_ast_dir, directory / "data", adapters=directory / "bundles", **times)) as service:
        yield service


@pytest.fixture
def connection(guarded: Live) -> Iterator[socket.socket]:
    with connect(guarded) as made:
        yield made


@pytest.fixture
def timed(hasty: Live) -> Iterator[socket.socket]:
    with connect(hasty) as made:
        yield made


def connect(service: Live) -> socket.socket:
    place = urlsplit(service.url)
    return socket.create_connection((place.hostname, place.port), timeout=30)


def answer(connection: socket.socket) -> tuple[int, str]:
    """Status and code of the one answer after which the server closes; 0 where it closes without any."""
    received = b""
    try:
        while chunk := connection.recv(65_536):
            received += chunk
    except ConnectionResetError:  # closed while what was sent is still unread
        pass
    if not received:
        return 0, ""
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert b"content-type: application/problem+json" in head.lower()
    return int(head.split()[1]), json.loads(body)["code"]


def trickle(connection: socket.socket, piece: bytes) -> tuple[int, float]:
    """Sends `piece` again and again until the server has enough of it; what it answered, and how long it took."""
    started = time.monotonic()
    stop = threading.Event()

    def send() -> None:
        try:
            while not stop.wait(0.05):
                connection.sendall(piece)
        except OSError:
            return

    sender = threading.Thread(target=send)
    sender.start()
    try:
        status, _ = answer(connection)
    finally:
        stop.set()
        sender.join()
    return status, time.monotonic() - started


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(MAX_FIELDS + 1)) + b"\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * (MAX_HEAD_BYTES + 1),  # a field that does not end
        b"GET /" + b"y" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["fields", "field", "endless field", "target"],
)
def test_a_head_too_large(connection: socket.socket, sent: bytes) -> None:
    connection.sendall(sent)
    assert answer(connection) == (431, "head_too_large")


@pytest.mark.parametrize("begun", [b"0\r\nX: ", b"1;x="], ids=["trailer", "chunk extension"])
def test_what_is_no_body_is_bounded_too(connection: socket.socket, begun: bytes) -> None:
    connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
    time.sleep(0.1)
    connection.sendall(begun + b"y" * (MAX_HEAD_BYTES + 1))
    assert answer(connection) == (431, "head_too_large")


def test_what_is_allowed_is_answered(guarded: Live) -> None:
    fields = {f"X-{number}": "y" * 200 for number in range(MAX_FIELDS - 10)}
    assert guarded.http.get("/healthz", headers=fields).status_code == 200


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nno field\r\n\r\n"])
def test_what_is_no_http(connection: socket.socket, sent: bytes) -> None:
    connection.sendall(sent)
    assert answer(connection) == (400, "bad_http")


@pytest.mark.parametrize(
    "hosts",
    [b"", b"Host: localhost\r\nHost: localhost\r\n", b"Host:\r\n", b"Host:  \r\n"],
    ids=["none", "two", "empty", "blank"],
)
def test_a_request_names_one_host(connection: socket.socket, hosts: bytes) -> None:
    connection.sendall(b"GET /healthz HTTP/1.1\r\n" + hosts + b"\r\n")
    assert answer(connection) == (400, "bad_http")


def test_http_before_hosts_needs_none(connection: socket.socket) -> None:
    connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_requests_sent_ahead_are_answered_in_turn_up_to_a_number(guarded: Live) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for sent, answered in ((MAX_PIPELINED, MAX_PIPELINED), (5_000, 0)):
        with connect(guarded) as connection:
            connection.sendall(ask * (sent - 1) + ask[:-2] + b"Connection: close\r\n\r\n")
            received = b""
            try:
                while chunk := connection.recv(65_536):
                    received += chunk
            except ConnectionResetError:  # closed while what was sent is still unread
                pass
        assert received.count(b"HTTP/1.1 200 ") == answered


def test_who_says_nothing_is_left_without_a_word(timed: socket.socket) -> None:
    assert answer(timed) == (0, "")


def test_a_head_that_does_not_end(timed: socket.socket) -> None:
    timed.sendall(b"GET / HTTP/1.1\r\nHost:")
    assert answer(timed) == (408, "request_too_slow")


def test_a_head_begun_behind_a_whole_request_ends_too(timed: socket.socket) -> None:
    timed.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost:")
    head, _, _ = timed.recv(65_536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert answer(timed) == (408, "request_too_slow")


def test_a_head_that_trickles(timed: socket.socket) -> None:
    timed.sendall(b"GET / HTTP/1.1\r\n")
    status, seconds = trickle(timed, b"X: y\r\n")
    assert status in (0, 408)  # not 431, for fields without an end; 0: what was sent since hides the answer
    assert HEAD_SECONDS * 0.9 < seconds < HEAD_SECONDS + ENOUGH


def test_empty_lines_are_no_way_to_stay(timed: socket.socket) -> None:
    timed.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert timed.recv(65_536).startswith(b"HTTP/1.1 200 ")
    status, seconds = trickle(timed, b"\r\n")
    assert status in (0, 408)
    assert seconds < HEAD_SECONDS + ENOUGH


def test_a_recording_may_arrive_as_slowly_as_it_is_spoken(
    tiny_ast: Backbone, tiny_ast_dir: Path, tmp_path: Path
) -> None:
    """For longer than a request may take, where no window is waited for that long."""
    content = encode(noise(2.0))
    seconds = 2.0

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(content), len(content) // 10):
            time.sleep(seconds / 8)
            yield content[at : at + len(content) // 10]

    random_bundle(tmp_path / "bundles", tiny_ast.spec, "alpha")
    settings = settings_for(tiny_ast_dir, tmp_path / "data", request_timeout=seconds, adapters=tmp_path / "bundles")
    with running(settings) as service:
        for path, status in (("/v1/jobs", 202), ("/v1/events", 200), ("/v1/classify", 504)):
            assert service.http.post(f"{path}?adapter=alpha", content=pieces()).status_code == status, path


def test_a_body_that_trickles(timed: socket.socket) -> None:
    """The route's deadline ends it, with the problem of a deadline."""
    timed.sendall(POST + b"Content-Length: 100000\r\nConnection: close\r\n\r\n")
    status, seconds = trickle(timed, b"x")
    assert status in (0, 408, 504)
    assert seconds < REQUEST_SECONDS + ENOUGH


def test_a_body_that_nobody_reads_does_not_hold_its_connection(timed: socket.socket) -> None:
    timed.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
    assert timed.recv(65_536).startswith(b"HTTP/1.1 200 ")
    status, seconds = trickle(timed, b"x")
    assert status in (0, 408)
    assert REQUEST_SECONDS * 0.9 < seconds < REQUEST_SECONDS + ENOUGH


def test_a_client_that_takes_nothing_is_cut_off(hasty: Live) -> None:
    """Answers enough to fill every buffer between, and nobody reads them."""
    with connect(hasty) as connection:
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            ask_on(connection, ask)
    assert hasty.http.get("/healthz").status_code == 200


def ask_on(connection: socket.socket, ask: bytes) -> None:
    for _ in range(2000):
        connection.sendall(ask)
        time.sleep(0.005)


def test_too_many_connections(guarded: Live) -> None:
    held = [connect(guarded) for _ in range(30)]
    over = set[socket.socket]()

    def are_closed() -> bool:
        over.update(one for one in held if one not in over and is_closed(one))
        return len(over) >= 10

    def is_back() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{guarded.url}/healthz").status_code == 200
        return False

    try:
        soon(are_closed, 5)
        assert len(over) < 30
    finally:
        for one in held:
            one.close()
    soon(is_back, 20)


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_refusals_are_counted(guarded: Live) -> None:
    with connect(guarded) as connection:
        connection.sendall(b"GET\r\n\r\n")
        assert answer(connection)[0] == 400
    assert 'ipet_requests_total{code="400",route="unmatched"}' in guarded.http.get("/metrics").text
