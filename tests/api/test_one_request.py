"""No request keeps the event loop or the interpreter for longer than a tenth of a second, whatever it is made of."""

import base64
import http.client
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from service.model.spec import TaskType
from tests.api.flood import request_of
from tests.api.live import Live, running, settings_for
from tests.api.watchdog import Watch, watching

pytestmark = pytest.mark.alone

MOST = 0.1  # seconds
TRIES = 3
JSON = {"content_type": "application/json"}
FORM = {"content_type": "multipart/form-data; boundary=x"}
CLASSIFY = "/v1/classify?adapter=alpha"
INFER = "/v2/models/alpha/infer"
HUB = "/v1/huggingface/alpha"
SCORE = "/v1/score?adapter=gamma"


@pytest.fixture(scope="module")
def open_wide(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The limits of `ipet serve`."""
    directory = tmp_path_factory.mktemp("wide")
    with running(settings_for(tiny_ast_dir, directory / "data")) as service:
        service.publish(directory, "alpha")
        service.publish(directory, "gamma", task=TaskType.VERIFICATION)
        yield service


def tensor(data: bytes, shape: str = "[1]", datatype: str = "BYTES") -> bytes:
    head = f'{{"inputs": [{{"name": "audio", "datatype": "{datatype}", "shape": {shape}, "data": '
    return head.encode() + data + b"}]}"


def repeated(piece: bytes, size: int) -> bytes:
    return piece * (size // len(piece))


def row(piece: bytes, size: int) -> bytes:
    return b"[" + repeated(piece + b",", size) + piece + b"]"


def part(head: bytes, content: bytes = b"") -> bytes:
    return b"--x\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + content + b"\r\n"


def mp4(inside: bytes) -> bytes:
    head = struct.pack(">I", 16) + b"ftypM4A \0\0\0\0"
    return head + struct.pack(">I", 8 + len(inside)) + b"moov" + inside


def pieces(body: bytes, size: int) -> bytes:
    """The body in chunks of its transfer coding."""
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def chunked(path: str, body: bytes, size: int) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + pieces(body, size)


MEGABYTE = 10**6
HOSTILE: dict[str, tuple[int, Callable[[], bytes]]] = {
    "empty lists": (422, lambda: request_of("POST", INFER, tensor(row(b"[]", 15 * MEGABYTE)), **JSON)),
    "zeros": (413, lambda: request_of("POST", INFER, tensor(row(b"0", 16 * MEGABYTE), "[8000001]", "FP32"), **JSON)),
    "nested": (422, lambda: request_of("POST", INFER, tensor(b"[" * 15 * MEGABYTE), **JSON)),
    "rows": (422, lambda: request_of("POST", INFER, tensor(row(row(b"0", 900), 15 * MEGABYTE), "[9]", "FP32"), **JSON)),
    "digits": (422, lambda: request_of("POST", INFER, tensor(b"[" + b"1" * 15 * MEGABYTE + b"]"), **JSON)),
    "keys": (422, lambda: request_of("POST", INFER, b"{" + repeated(b'"a":0,', 15 * MEGABYTE) + b'"a":0}', **JSON)),
    "escapes": (422, lambda: request_of("POST", INFER, tensor(b'["' + b"\\" * 15 * MEGABYTE + b'"]'), **JSON)),
    "hub base64": (
        422,
        lambda: request_of("POST", HUB, b'{"inputs":"%b"}' % base64.b64encode(bytes(45 * MEGABYTE)), **JSON),
    ),
    "hub slashes": (
        422,
        lambda: request_of("POST", HUB, b'{"inputs":"' + b"\\/\\/\\/\\/" * 7 * MEGABYTE + b'"}', **JSON),
    ),
    "hub zeros": (422, lambda: request_of("POST", HUB, b'{"inputs":' + row(b"0", 60 * MEGABYTE) + b"}", **JSON)),
    "hub lists": (422, lambda: request_of("POST", HUB, b'{"inputs":' + row(b"[]", 60 * MEGABYTE) + b"}", **JSON)),
    "content type": (
        422,
        lambda: request_of("POST", CLASSIFY, b"x", content_type="multipart/form-data" + ";" * 31_000),
    ),
    "dispositions": (422, lambda: request_of("POST", CLASSIFY, part(b'name="audio"' + b";" * 4000) * 60, **FORM)),
    "many parts": (422, lambda: request_of("POST", CLASSIFY, part(b'name="audio"') * 100_000, **FORM)),
    "near boundaries": (422, lambda: request_of("POST", CLASSIFY, part(b'name="audio"', b"\r\n--" * MEGABYTE), **FORM)),
    "line ends": (422, lambda: request_of("POST", CLASSIFY, part(b'name="audio"', b"\r" * 4 * MEGABYTE), **FORM)),
    "tiny chunks": (422, lambda: chunked(CLASSIFY, b"x" * MEGABYTE, 1)),
    "mp4 tables": (422, lambda: request_of("POST", CLASSIFY, mp4(repeated(b"stsstsss", 62 * MEGABYTE)))),
    "mp4 run lengths": (
        422,
        lambda: request_of(
            "POST",
            CLASSIFY,
            mp4(repeated(b"stts" + bytes(4) + b"\xff" * 4 + bytes(4), MEGABYTE) + bytes(60 * MEGABYTE)),
        ),
    ),
    "score lists": (422, lambda: request_of("POST", SCORE, b'{"enrolment":' + row(b"[]", MEGABYTE) + b"}", **JSON)),
    "score nulls": (422, lambda: request_of("POST", SCORE, b'{"test":' + row(b"null", MEGABYTE) + b"}", **JSON)),
    "score numbers": (
        422,
        lambda: request_of("POST", SCORE, b'{"enrolment":[%b],"test":[1]}' % row(b"1", MEGABYTE), **JSON),
    ),
    "alias keys": (
        413,
        lambda: request_of("PUT", "/v1/adapters/alpha/aliases/a", b"{" + b'"a":0,' * MEGABYTE + b"}", **JSON),
    ),
    "parameters": (422, lambda: request_of("POST", CLASSIFY + "&a" * 15_000, b"x")),
    "parameters of a list": (422, lambda: request_of("GET", "/v1/adapters?" + "&q=" * 10_000)),
    "adapters": (422, lambda: request_of("POST", CLASSIFY + "&adapter=a" * 2_500, b"x")),
    "ranges": (
        200,
        lambda: request_of("GET", "/v1/adapters/alpha/versions/1/weights", range="bytes=" + "0-1," * 7_000),
    ),
    "tags": (200, lambda: request_of("GET", "/v1/adapters/alpha/versions/1/config", if_none_match='"a",' * 7_000)),
    "kinds": (200, lambda: request_of("GET", "/v1/backbone", accept="a/b;q=0," * 3_500)),
    "config": (
        422,
        lambda: request_of(
            "POST",
            "/v1/adapters/alpha/versions",
            part(b'name="config"', b"[" * MEGABYTE) + part(b'name="weights"', b"x") + b"--x--\r\n",
            **FORM,
        ),
    ),
    "header": (
        422,
        lambda: request_of(
            "POST",
            "/v1/adapters/alpha/versions",
            part(b'name="weights"', struct.pack("<Q", 9 * MEGABYTE) + b"{" + repeated(b'"a":{},', 9 * MEGABYTE))
            + part(b'name="config"', b"{}")
            + b"--x--\r\n",
            **FORM,
        ),
    ),
    "pipeline": (0, lambda: request_of("GET", "/healthz") * 9_000),
}


def asked(service: Live, sent: bytes, status: int) -> Watch:
    """What one request did to the service, which answers it."""
    place = urlsplit(service.url)
    assert service.loop is not None
    with (
        socket.create_connection((place.hostname or "", place.port or 0), timeout=60) as connection,
        watching(service.loop) as watch,
    ):
        with suppress(OSError):  # refused before it was read
            connection.sendall(sent)
        with suppress(OSError, http.client.HTTPException), closing(http.client.HTTPResponse(connection)) as answer:
            answer.begin()
            assert answer.status == status
            answer.read()
            status = 0
    assert not status, "no answer"
    assert service.http.get("/healthz").status_code == 200
    assert service.context.budget.held == 0
    return watch


@pytest.mark.parametrize("name", HOSTILE)
def test_one_request_stops_nothing(open_wide: Live, name: str) -> None:
    status, build = HOSTILE[name]
    sent = build()
    for _ in range(TRIES):  # what a busy machine adds is not there each time
        watch = asked(open_wide, sent, status)
        if max(watch.loop, watch.interpreter) < MOST:
            break
    print(f"{name}: loop {watch.loop * 1e3:.0f} ms, interpreter {watch.interpreter * 1e3:.0f} ms")
    assert watch.loop < MOST
    assert watch.interpreter < MOST
