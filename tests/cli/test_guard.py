"""Connections of hostile clients: heads too large, heads, bodies and readers too slow, too many at once."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from service.cli.guard import MAX_FIELDS, MAX_HEAD_BYTES, MAX_PIPELINED
from tests.api.live import Live, running, settings_for
from tests.synthesis import encode, noise

HEAD_SECONDS = 0.4
REQUEST_SECONDS = 0.6
POST = b"POST /v1/classify?adapter=alpha HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def guarded(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    directory = tmp_path_factory.mktemp("guarded")
    settings = settings_for(
        tiny_ast_dir, directory / "data", head_timeout=HEAD_SECONDS, request_timeout=REQUEST_SECONDS, max_connections=20
    )
    with running(settings) as service:
        service.publish(directory, "alpha")
        yield service


@pytest.fixture
def connection(guarded: Live) -> Iterator[socket.socket]:
    with connect(guarded) as made:
        yield made


def connect(service: Live) -> socket.socket:
    place = urlsplit(service.url)
    return socket.create_connection((place.hostname, place.port), timeout=10)


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


def trickle(connection: socket.socket, piece: bytes, seconds: float = 5.0) -> float:
    """Sends `piece` again and again until the server has enough of it; how long it took."""
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
        assert answer(connection)[0] in (0, 408, 431, 504)
    finally:
        stop.set()
        sender.join()
    took = time.monotonic() - started
    assert took < seconds
    return took


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


def test_who_says_nothing_is_left_without_a_word(connection: socket.socket) -> None:
    assert answer(connection) == (0, "")


def test_a_head_that_does_not_end(connection: socket.socket) -> None:
    connection.sendall(b"GET / HTTP/1.1\r\nHost:")
    assert answer(connection) == (408, "request_too_slow")


def test_a_head_begun_behind_a_whole_request_ends_too(connection: socket.socket) -> None:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost:")
    head, _, _ = connection.recv(65_536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert answer(connection) == (408, "request_too_slow")


def test_a_head_that_trickles(connection: socket.socket) -> None:
    connection.sendall(b"GET / HTTP/1.1\r\n")
    assert HEAD_SECONDS * 0.9 < trickle(connection, b"X: y\r\n") < HEAD_SECONDS + 1


def test_empty_lines_are_no_way_to_stay(guarded: Live, connection: socket.socket) -> None:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
    trickle(connection, b"\r\n")


def test_a_recording_may_arrive_as_slowly_as_it_is_spoken(tiny_ast_dir: Path, tmp_path: Path) -> None:
    """For longer than a request may take, where no window is waited for that long."""
    content = encode(noise(2.0))
    seconds = 2.0

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(content), len(content) // 10):
            time.sleep(seconds / 8)
            yield content[at : at + len(content) // 10]

    with running(settings_for(tiny_ast_dir, tmp_path / "data", request_timeout=seconds)) as service:
        service.publish(tmp_path, "alpha")
        for path, status in (("/v1/jobs", 202), ("/v1/events", 200), ("/v1/classify", 504)):
            assert service.http.post(f"{path}?adapter=alpha", content=pieces()).status_code == status, path


def test_a_body_that_trickles(connection: socket.socket) -> None:
    """The route's deadline ends it, with the problem of a deadline."""
    connection.sendall(POST + b"Content-Length: 100000\r\nConnection: close\r\n\r\n")
    trickle(connection, b"x")


def test_a_body_that_nobody_reads_does_not_hold_its_connection(connection: socket.socket) -> None:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
    assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
    assert trickle(connection, b"x") > REQUEST_SECONDS * 0.9


def test_a_client_that_takes_nothing_is_cut_off(guarded: Live) -> None:
    """Answers enough to fill every buffer between, and nobody reads them."""
    with connect(guarded) as connection:
        connection.settimeout(5)
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            ask_on(connection, ask)
    assert guarded.http.get("/healthz").status_code == 200


def ask_on(connection: socket.socket, ask: bytes) -> None:
    for _ in range(2000):
        connection.sendall(ask)
        time.sleep(0.005)


def test_too_many_connections(guarded: Live) -> None:
    held = [connect(guarded) for _ in range(30)]
    try:
        over = [one for one in held if closed_at_once(one)]
        assert 10 <= len(over) < 30
    finally:
        for one in held:
            one.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{guarded.url}/healthz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the service did not come back")


def closed_at_once(connection: socket.socket) -> bool:
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
