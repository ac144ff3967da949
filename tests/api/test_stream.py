"""Live audio over a WebSocket: windows and events as they complete, and everything that may go wrong on the way."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from service.access.keys import Scope
from tests.api.keyed import Keyed, bearer, with_keys
from tests.api.live import Live, running, settings_for
from tests.live_audio import figures
from tests.synthesis import encode, noise
from tests.waiting import soon

START = {"type": "start", "format": "pcm16", "sampling_rate": 16_000}
WINDOW = 0.64  # seconds, of the tests' adapters


def pcm(samples: NDArray[np.float32]) -> bytes:
    return np.clip(np.round(samples[:, 0] * 32768), -32768, 32767).astype("<i2").tobytes()


@contextmanager
def streaming(
    live: Live, query: str = "adapter=alpha&hop=0.2", start: object = START, **more: Any
) -> Iterator[ClientConnection]:
    url = live.url.replace("http://", "ws://")
    with connect(f"{url}/v1/stream?{query}", **more) as ws:
        if start is not None:
            ws.send(start if isinstance(start, str | bytes) else json.dumps(start))
        yield ws


def received(ws: ClientConnection) -> list[str | bytes]:
    """Everything up to the end, however it ends."""
    found: list[str | bytes] = []
    with suppress(ConnectionClosed):
        while True:
            found.append(ws.recv(60))
    return found


def told(ws: ClientConnection) -> list[dict[str, Any]]:
    """All messages up to the end of the stream; the reason of its end is the last one's."""
    found = [json.loads(message) for message in received(ws)]
    assert ws.protocol.close_reason == (found[-1]["code"] if found[-1]["type"] == "error" else "")
    return found


def refusal(live: Live, query: str = "adapter=alpha", start: object = START, *after: str | bytes) -> tuple[str, str]:
    """Code and detail of the error that ends a stream."""
    with streaming(live, query, start) as ws:
        with suppress(ConnectionClosed):
            for message in after:
                ws.send(message)
        last = json.loads(received(ws)[-1])
    assert last["type"] == "error", last
    return last["code"], last["detail"]


@pytest.mark.parametrize("size", [37 * 2, 3200, 40_000])
def test_windows_are_those_of_the_clip_whatever_the_messages(live: Live, size: int) -> None:
    samples = noise(1.7, seed=3)
    content = pcm(samples)
    with streaming(live, "adapter=alpha&adapter=beta&hop=0.2&top_k=0") as ws:
        for at in range(0, len(content), size):
            ws.send(content[at : at + size])
        ws.send('{"type": "end"}')
        messages = told(ws)
    assert [messages[0]["type"], messages[-1]["type"]] == ["started", "done"]
    assert messages[0]["parameters"]["alpha@1"]["hop"] == 0.2
    assert messages[-1]["seconds"] == pytest.approx(1.7)
    windows = [one for one in messages if one["type"] == "window" and one["adapter"] == "alpha"]
    assert [one["start"] for one in windows] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.04], abs=0.011)
    assert len([one for one in messages if one["type"] == "window"]) == 2 * len(windows)
    for window in windows[::3]:  # each alone, by the clip path
        first = round(window["start"] * 16_000)
        alone = encode(np.frombuffer(content, "<i2")[first : first + 63 * 160 + 400, None].astype(np.float32) / 32768)
        answer = live.http.post("/v1/classify?adapter=alpha&top_k=0", content=alone).json()["results"][0]
        scores = {one["label"]: one["score"] for one in answer["labels"]}
        assert {one["label"]: one["score"] for one in window["labels"]} == pytest.approx(scores, abs=1e-4)


def test_a_window_is_told_as_soon_as_it_is_heard(live: Live) -> None:
    with streaming(live) as ws:
        assert json.loads(ws.recv(20))["type"] == "started"
        ws.send(pcm(noise(WINDOW + 0.02)))
        first = json.loads(ws.recv(20))
        assert (first["type"], first["start"], first["end"]) == ("window", 0.0, pytest.approx(WINDOW))
        with pytest.raises(TimeoutError):
            ws.recv(0.2)
        ws.send(pcm(noise(0.2)))
        assert json.loads(ws.recv(20))["start"] == 0.2


def test_events_come_while_the_stream_goes_on(live: Live) -> None:
    """At threshold 0 the whole stream is one event of each label; at 1 there is none."""
    for threshold, count in ((0, 7), (1, 0)):
        with streaming(live, f"adapter=alpha&hop=0.2&threshold={threshold}") as ws:
            ws.send(pcm(noise(1.5)))
            ws.send('{"type": "end"}')
            events = [one for one in told(ws) if one["type"] == "event"]
        assert len(events) == count
        assert all((one["start"], one["end"]) == (0.0, 1.5) for one in events)
        assert all(set(one) == {"type", "adapter", "version", "label", "start", "end", "score"} for one in events)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_any_rate_is_taken(live: Live, rate: int) -> None:
    with streaming(live, start=START | {"sampling_rate": rate}) as ws:
        ws.send(pcm(noise(1.0, rate)))
        ws.send('{"type": "end"}')
        done = told(ws)[-1]
    assert (done["type"], done["seconds"]) == ("done", pytest.approx(1.0, abs=0.001))


def test_webm_comes_in_chunks_as_a_recorder_sends_them(live: Live) -> None:
    """Windows come while the recording goes on; an encoder's delay is all that they differ by from the clip's."""
    content = encode(noise(6.0, 48_000), 48_000, "webm")
    pieces = [content[at : at + 700] for at in range(0, len(content), 700)]
    with streaming(live, start={"type": "start", "format": "webm"}) as ws:
        for piece in pieces[: len(pieces) // 2]:
            ws.send(piece)
        assert [json.loads(ws.recv(20))["type"] for _ in range(3)] == ["started", "window", "window"]
        for piece in pieces[len(pieces) // 2 :]:
            ws.send(piece)
        ws.send('{"type": "end"}')
        messages = told(ws)
    assert (messages[-1]["type"], messages[-1]["seconds"]) == ("done", pytest.approx(6.0, abs=0.05))
    assert max(one["end"] for one in messages if one["type"] == "window") == pytest.approx(6.0, abs=0.05)


@pytest.mark.parametrize(
    "content",
    [
        b"x" * 5000,
        encode(noise(1.0, 48_000), 48_000, "webm")[:3000] + b"\xff" * 3000,
        encode(noise(1.0)),
        encode(noise(1.0), container="m4a"),
    ],
    ids=["rubbish", "broken", "wav", "m4a"],
)
def test_webm_that_is_none_is_told(live: Live, content: bytes) -> None:
    found = refusal(live, "adapter=alpha", {"type": "start", "format": "webm"}, content, '{"type": "end"}')
    assert found[0] == "bad_audio"


def test_a_recorder_s_stream_is_no_longer_than_a_recording(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = live.context.settings.model_copy(update={"max_long_bytes": 20_000})
    monkeypatch.setattr(live.context, "settings", settings)
    content = encode(noise(6.0, 48_000), 48_000, "webm")
    found = refusal(live, "adapter=alpha", {"type": "start", "format": "webm"}, content[:15_000], content[15_000:])
    assert (found[0], "20000 bytes" in found[1]) == ("payload_too_large", True)


@pytest.mark.parametrize(
    ("query", "start", "code", "detail"),
    [
        ("adapter=alpha", b"\0\0", "invalid_request", "audio came before the start"),
        ("adapter=alpha", "{", "invalid_request", "JSON"),
        ("adapter=alpha", {"type": "end"}, "invalid_request", "start"),
        ("adapter=alpha", START | {"format": "flac"}, "invalid_request", "flac"),
        ("adapter=alpha", START | {"rate": 1}, "invalid_request", "rate"),
        ("adapter=alpha", START | {"sampling_rate": 3_999}, "invalid_request", "4000"),
        ("adapter=alpha", START | {"sampling_rate": 10**30}, "invalid_request", "192000"),
        ("adapter=alpha", START | {"sampling_rate": "16000"}, "invalid_request", "integer"),
        ("adapter=alpha", START | {"sampling_rate": True}, "invalid_request", "integer"),
        ("adapter=nobody", START, "unknown_adapter", "nobody"),
        ("adapter=gamma", START, "wrong_task", "AUDIO_CLASSIFICATION"),
        ("", START, "invalid_request", "adapter"),
        ("adapter=alpha&hop=0.123", START, "invalid_request", "multiple of 0.01"),
        ("adapter=alpha&hop=2", START, "invalid_request", "at most 0.64"),
        ("adapter=alpha&pop=2", START, "invalid_request", "pop"),
    ],
)
def test_a_wrong_start_is_told(live: Live, query: str, start: object, code: str, detail: str) -> None:
    with streaming(live, query, start) as ws:
        message = told(ws)[0]
    assert (message["type"], message["code"], detail in message["detail"]) == ("error", code, True), message


@pytest.mark.parametrize(
    ("after", "code", "detail"),
    [
        ([json.dumps(START)], "invalid_request", "starts once"),
        (["{}"], "invalid_request", "type"),
        ([b"\0"], "invalid_request", "2 bytes"),
        (['{"type": "end"}'], "bad_audio", "at least 400"),
    ],
)
def test_a_wrong_message_ends_the_stream(live: Live, after: list[str | bytes], code: str, detail: str) -> None:
    found = refusal(live, "adapter=alpha", START, *after)
    assert (found[0], detail in found[1]) == (code, True), found


def test_what_was_heard_before_an_error_is_told_first(live: Live) -> None:
    with streaming(live) as ws:
        ws.send(pcm(noise(1.0)))
        ws.send(b"odd")
        messages = told(ws)
    assert [one["type"] for one in messages[1:-1]] == ["window"] * (len(messages) - 2)
    assert (messages[-1]["code"], messages[-1]["at"]) == ("invalid_request", pytest.approx(1.0))


@pytest.mark.parametrize("last", [b"odd", "rubbish", json.dumps(START)])
def test_open_events_are_told_before_an_error(live: Live, last: str | bytes) -> None:
    with streaming(live, "adapter=alpha&hop=0.2&threshold=0") as ws:
        ws.send(pcm(noise(1.5)))
        ws.send(last)
        messages = told(ws)
    events = [one for one in messages if one["type"] == "event"]
    assert [(one["start"], one["end"]) for one in events] == [(0.0, messages[-2]["end"])] * 7
    ends = [one["end"] for one in messages if one["type"] == "window"]
    assert messages[-2]["end"] == pytest.approx(max(ends))


def test_nothing_is_left_of_streams_that_break_off(live: Live) -> None:
    for content in (b"", pcm(noise(1.0)), pcm(noise(20.0))):
        with streaming(live) as ws:
            ws.recv(20)
            for at in range(0, len(content), 2**19):
                ws.send(content[at : at + 2**19])
            ws.socket.close()
    soon(lambda: not (live.context.streams or live.context.runtime.engine.room.held), 20)


@pytest.mark.parametrize(
    ("path", "host", "headers", "status", "code"),
    [
        ("/v1/classify?adapter=alpha", "", {}, 404, "not_found"),
        ("/v1/stream?adapter=alpha", "", {"Origin": "https://evil.example"}, 403, "forbidden"),
        ("/v1/stream?adapter=alpha", "rebound.example", {}, 403, "forbidden"),
    ],
)
def test_a_handshake_is_judged_as_any_request(
    live: Live, path: str, host: str, headers: dict[str, str], status: int, code: str
) -> None:
    place = urlsplit(live.url)
    sock = socket.create_connection((place.hostname, place.port))
    url = f"ws://{host or place.netloc}{path}"
    with pytest.raises(InvalidStatus) as refused, connect(url, sock=sock, additional_headers=headers):
        pass
    response = refused.value.response
    assert (response.status_code, json.loads(response.body or b"")["code"]) == (status, code)


def test_a_stream_is_one_line_of_the_log(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with streaming(live, "adapter=alpha&top_k=3") as ws:
        ws.send(pcm(noise(1.0)))
        ws.send('{"type": "end"}')
        told(ws)
    soon(lambda: "request" in [one.message for one in caplog.records], 20)
    line = vars(next(one for one in caplog.records if one.message == "request"))
    assert (line["route"], line["status"], line["adapters"], line["audio_seconds"]) == (
        "/v1/stream",
        101,
        ["alpha@1"],
        1.0,
    )
    assert "top_k" not in caplog.text


def test_a_plain_get_is_told_what_a_stream_is(live: Live) -> None:
    answer = live.http.get("/v1/stream?adapter=alpha")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_http")


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/classify?adapter=alpha HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n",
        b"GET /v1/stream?adapter=alpha HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 10_000 + b"\r\n",
        b"GET /v1/stream?adapter=alpha HTTP/1.1\r\nHost: localhost\r\nSec-WebSocket-Key: none\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v1/stream HTTP/1.1\r\nHost: localhost\r\n",
    ],
    ids=["post", "long field", "no key", "pipelined"],
)
def test_a_handshake_that_is_none_is_answered_and_closed(live: Live, head: bytes) -> None:
    place = urlsplit(live.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as raw:
        raw.sendall(head + b"Connection: upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\nx")
        answer = b""
        with suppress(ConnectionResetError):
            while chunk := raw.recv(65_536):
                answer += chunk
    assert answer.startswith(b"HTTP/1.1 ")
    assert b"101 Switching" not in answer


def test_who_does_not_read_is_told_and_not_waited_for(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.socket.SEND_SECONDS", 1.0)
    place = urlsplit(live.url)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((place.hostname, place.port))
    with connect(f"ws://{place.netloc}/v1/stream?adapter=alpha&hop=0.01&top_k=0", sock=sock, max_queue=1) as ws:
        ws.send(json.dumps(START))
        ws.send(pcm(noise(20.0)))
        soon(lambda: live.context.streams, 60)
        soon(lambda: not live.context.streams, 60)
        time.sleep(2.5)  # what it was told last waits for it
        last = told(ws)[-1]
    assert (last["type"], last["code"]) == ("error", "deadline_exceeded")
    assert "read them as they come" in last["detail"]


@pytest.fixture(scope="module")
def keyed(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    with with_keys(tiny_ast_dir, tmp_path_factory.mktemp("keyed"), max_streams=2) as service:
        yield service


def test_the_key_comes_with_the_first_message_or_a_header(keyed: Keyed) -> None:
    key, query = keyed.make(Scope.INFER, adapters=("acme-*",)), "adapter=acme-one"
    with streaming(keyed.service, query, START | {"key": key}) as ws:
        assert json.loads(ws.recv(20))["type"] == "started"
    with streaming(keyed.service, query, additional_headers=bearer(key), origin="https://app.example") as ws:
        assert json.loads(ws.recv(20))["type"] == "started"
    with streaming(keyed.service, query, START | {"key": key}, additional_headers=bearer(key)) as ws:
        assert "send it once" in told(ws)[-1]["detail"]
    assert refusal(keyed.service, query)[0] == "unauthorized"
    assert refusal(keyed.service, query, START | {"key": "wrong"})[0] == "unauthorized"
    assert refusal(keyed.service, query, START | {"key": keyed.make(Scope.READ)})[0] == "forbidden"
    assert refusal(keyed.service, "adapter=other-one", START | {"key": key})[0] == "unknown_adapter"


def test_streams_are_bounded_by_key_and_in_all(keyed: Keyed) -> None:
    soon(lambda: not keyed.service.context.streams, 20)  # those of other tests have ended
    alone, many = keyed.make(Scope.INFER, concurrency=1), keyed.make(Scope.INFER)
    query = "adapter=acme-one"
    with streaming(keyed.service, query, START | {"key": alone}) as ws:
        ws.recv(20)
        assert refusal(keyed.service, query, START | {"key": alone})[0] == "rate_limited"
        with streaming(keyed.service, query, START | {"key": many}) as second:
            second.recv(20)
            code, detail = refusal(keyed.service, query, START | {"key": many})
            assert (code, "2 streams" in detail) == ("overloaded", True)


def test_a_silent_handshake_is_ended(keyed: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    context = keyed.service.context
    monkeypatch.setattr(context, "settings", context.settings.model_copy(update={"head_timeout": 0.5}))
    with streaming(keyed.service, start=None) as ws:
        assert "no message came within 0.5 s" in told(ws)[-1]["detail"]


def test_a_stopping_service_ends_its_streams_at_once(tiny_ast_dir: Path, tmp_path: Path) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data", shutdown_timeout=10.0)) as service:
        service.publish(tmp_path, "alpha")
        with streaming(service) as ws:
            ws.recv(20)
            assert service.loop is not None
            service.loop.call_soon_threadsafe(service.context.drain, 10.0)
            started = time.monotonic()
            last = told(ws)[-1]
    assert (last["code"], time.monotonic() - started < 8) == ("not_ready", True)


@pytest.mark.slow
def test_many_streams_at_once() -> None:
    """Of an idle machine: tests/live_audio.py prints the figures."""
    alone, many = figures([(1, 200), (20, 200)], 8)
    assert alone["p95"] <= 150
    assert many["windows"] == 20 * alone["windows"]
