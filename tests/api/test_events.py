"""Events of recordings over HTTP: against the whole-clip path, in every form, while they come, and when they break."""

import csv
import io
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from service.access.keys import Scope
from service.api.inference.events import form_of
from service.errors import NotAcceptable
from service.model.backbone import Backbone
from service.timeline.parameters import Parameters
from service.timeline.timeline import Timeline
from tests.api.keyed import bearer, with_keys
from tests.api.live import Live, running, settings_for
from tests.bundles import random_bundle
from tests.synthesis import encode, noise, tone
from tests.waiting import soon

LABELS = ("cat", "dog", "background")
INPUT = {"sampling_rate": 16000, "window_frames": 64, "windows": None, "hop_frames": 50, "mean": -6.0, "std": 5.0}
TONES = [noise(4.0, seed=1), tone(2.0, 1_000.0), noise(3.0, seed=2), tone(1.0, 1_000.0), noise(2.33, seed=3)]
CLIP = encode(np.concatenate(TONES), 16_000, "flac")
LEVELS = {"threshold": 0.36, "hysteresis": 0.34, "min_seconds": 0.5, "merge_gap": 0.5}


@pytest.fixture(scope="module")
def service(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Live:
    directory = tmp_path_factory.mktemp("events")
    fields = {"labels": LABELS, "input": INPUT, "activation": "softmax"}
    live.publish(directory, "hears", seed=3, events=LEVELS, **fields)
    live.publish(directory, "hears-too", seed=4, **fields)
    return live


def ask(service: Live, query: str = "adapter=hears", status: int = 200, body: bytes = CLIP, **more: Any) -> Any:
    answer = service.http.post(f"/v1/events?{query}", content=body, **more)
    assert answer.status_code == status, answer.text
    return answer.json()


def windows(service: Live, adapter: str) -> np.ndarray:
    """Scores `[W, C]` by the whole-clip path."""
    query = f"/v1/classify?adapter={adapter}&windows=true&top_k=0"
    told = service.http.post(query, content=CLIP).json()["results"][0]["windows"]
    return np.array(
        [[{one["label"]: one["score"] for one in row["labels"]}[label] for label in LABELS] for row in told]
    )


def test_events_are_those_of_the_clip_s_windows(service: Live) -> None:
    got = ask(service)
    timeline = Timeline(LABELS, 0.64, Parameters(hop=0.5, **LEVELS))
    wanted = [*timeline.add(windows(service, "hears")), *timeline.finish(12.33)]
    assert len(wanted) >= 2, "these random weights hear nothing: take other levels"
    wanted.sort(key=lambda event: (event.start, event.end))
    assert [(one["label"], one["start"], one["end"]) for one in got["events"]] == [
        (e.label, e.start, e.end) for e in wanted
    ]
    assert [one["score"] for one in got["events"]] == pytest.approx([event.score for event in wanted], abs=2e-5)
    assert {(one["adapter"], one["version"]) for one in got["events"]} == {("hears", 1)}
    assert got["audio"] == {"seconds": 12.33, "sampling_rate": 16000, "channels": 1}
    assert got["parameters"] == {"hears@1": {"hop": 0.5, "smoothing": 0.0, **LEVELS}}
    assert "error" not in got


def test_several_adapters_on_one_pass_and_parameters_of_the_request(service: Live) -> None:
    query = "hop=0.2&threshold=0.35&smoothing=1&min_seconds=0.4&merge_gap=0&hysteresis=0.3"
    both = ask(service, f"adapter=hears&adapter=hears-too&{query}")
    assert [one["start"] for one in both["events"]] == sorted(one["start"] for one in both["events"])
    asked = {"hop": 0.2, "threshold": 0.35, "smoothing": 1.0, "min_seconds": 0.4, "merge_gap": 0.0, "hysteresis": 0.3}
    assert both["parameters"] == {"hears@1": asked, "hears-too@1": asked}
    for name in ("hears", "hears-too"):
        assert ask(service, f"adapter={name}&{query}")["events"] == [e for e in both["events"] if e["adapter"] == name]


def test_tables(service: Live) -> None:
    events = ask(service)["events"]

    def table(kind: str) -> httpx.Response:
        answer = service.http.post(
            "/v1/events?adapter=hears", files={"audio": ("night, 1.flac", CLIP)}, headers={"Accept": kind}
        )
        assert answer.status_code == 200
        return answer

    rows = list(csv.DictReader(io.StringIO(table("text/csv").text)))
    assert list(rows[0]) == ["file", "adapter", "version", "label", "start", "end", "score"]
    assert [(row["file"], row["label"], float(row["start"])) for row in rows] == [
        ("night, 1.flac", one["label"], one["start"]) for one in events
    ]
    assert [line.split("\t")[2] for line in table("text/x-audacity-labels").text.splitlines()] == [
        one["label"] for one in events
    ]
    assert len(table("text/x-raven-table").text.splitlines()) == 1 + len(events)
    assert table("application/json;q=0.1, text/csv;q=0.9, image/png").headers["content-type"].startswith("text/csv")


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("*/*", "application/json"),
        ("text/csv;q=0.2, */*;q=0.1", "text/csv"),
        ("application/json;q=0, */*", "application/x-ndjson"),
        ("application/*;q=0, */*;q=0.5", "text/csv"),
        ("text/*, text/csv;q=0.1", "text/x-audacity-labels"),
        ("*/*, text/csv", "text/csv"),
        ("text/csv, application/json", "text/csv"),
        ("text/x-raven-table;q=1.000;level=1, application/json;q=0.999", "text/x-raven-table"),
    ],
)
def test_a_form_is_chosen_by_its_most_specific_range(accept: str, form: str) -> None:
    assert form_of(accept) == form


@pytest.mark.parametrize("weight", ["-1", "1.5", "nan", "inf", "2", "", "1e-1"])
def test_a_weight_is_from_0_to_1(weight: str) -> None:
    with pytest.raises(NotAcceptable, match="no weight from 0 to 1"):
        form_of(f"text/csv;q={weight}, */*")


def test_a_version_is_heard_once(service: Live) -> None:
    once = service.http.post("/v1/events?adapter=hears", content=CLIP).json()
    twice = service.http.post("/v1/events?adapter=hears&adapter=hears@live&adapter=hears", content=CLIP).json()
    assert once["events"]
    assert twice == once


@pytest.mark.parametrize("accept", ["image/png", "text/csv;q=0", "text/csv;q=much"])
def test_a_form_that_there_is_not(service: Live, accept: str) -> None:
    answer = service.http.post("/v1/events?adapter=hears", content=CLIP, headers={"Accept": accept})
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")


# While it comes


def connect(service: Live) -> socket.socket:
    place = urlsplit(service.url)
    return socket.create_connection((place.hostname, place.port), timeout=20)


def more_of(connection: socket.socket) -> bytes:
    received = connection.recv(65_536)
    assert received, "the connection was closed"
    return received


def head(accept: str = "application/x-ndjson", field: str = "Transfer-Encoding: chunked") -> bytes:
    return (
        f"POST /v1/events?adapter=hears HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n{field}\r\n\r\n"
    ).encode()


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def lines(received: bytes) -> list[dict[str, Any]]:
    """The JSON lines of a chunked answer."""
    return [json.loads(line) for line in received.partition(b"\r\n\r\n")[2].splitlines() if line.startswith(b"{")]


def test_progress_and_events_come_before_the_recording_has_ended(service: Live) -> None:
    whole = ask(service)
    with connect(service) as connection:
        connection.sendall(head() + chunk(CLIP[: len(CLIP) * 3 // 4]))
        received = b""
        while b'"progress", "seconds": 6' not in received and b'"progress", "seconds": 7' not in received:
            received += more_of(connection)
        assert b"200 OK" in received
        assert b"application/x-ndjson" in received
        connection.sendall(chunk(CLIP[len(CLIP) * 3 // 4 :]) + b"0\r\n\r\n")
        while b'"done"' not in received:
            received += more_of(connection)
    told = lines(received)
    seconds = [line["seconds"] for line in told if line["type"] == "progress"]
    assert seconds == sorted(seconds)
    assert seconds[-1] == 12.33
    found = [
        {name: value for name, value in line.items() if name != "type"} for line in told if line["type"] == "event"
    ]
    assert sorted(found, key=lambda one: (one["start"], one["end"])) == whole["events"]
    assert told[-1] == {"type": "done", "audio": whole["audio"], "parameters": whole["parameters"]}


def test_nothing_is_left_of_a_client_that_goes(service: Live) -> None:
    engine = service.context.runtime.engine
    for sent in (chunk(CLIP[:60_000]), chunk(CLIP) + b"0\r\n\r\n"):
        with connect(service) as connection:
            connection.sendall(head() + sent)
            connection.recv(65_536)
    soon(lambda: not (engine.recordings.count or engine.room.held), 20)
    assert ask(service)["events"]


def test_an_announcement_beyond_the_limit_is_refused_at_once(service: Live) -> None:
    with connect(service) as connection:
        connection.sendall(head("*/*", f"Content-Length: {10 * 10**9}"))
        told = more_of(connection)
        assert b" 413 " in told
        assert b"payload_too_large" in told


# What breaks


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_an_upload_that_stalls_is_answered_until_there(service: Live, accept: str) -> None:
    """Within the deadline of its own header."""
    with connect(service) as connection:
        query = b"adapter=hears&threshold=0&hysteresis=0"
        begin = head(accept, "X-Request-Timeout-Ms: 4000\r\nTransfer-Encoding: chunked")
        connection.sendall(begin.replace(b"adapter=hears", query) + chunk(CLIP[: len(CLIP) // 2]))
        received = b""
        while b'"deadline_exceeded"' not in received:
            received += more_of(connection)
    assert b" 200 OK" in received
    told = lines(received)
    error = told[-1]["error"]
    found = told[0]["events"] if accept == "application/json" else [one for one in told if one["type"] == "event"]
    assert {one["end"] for one in found} == {error["at"]}
    assert {one["label"] for one in found} == {"cat", "dog"}
    assert 5.0 < error["at"] < 7.0


def test_a_recording_waits_for_its_turn(tiny_ast: Backbone, tiny_ast_dir: Path, tmp_path: Path) -> None:
    """Longer than a request may: the queue is full of others."""
    bundles = tmp_path / "bundles"
    random_bundle(bundles, tiny_ast.spec, "hears", labels=LABELS, input=INPUT, activation="softmax")
    with running(settings_for(tiny_ast_dir, tmp_path / "data", request_timeout=3.0, adapters=bundles)) as service:
        room, loop = service.context.runtime.engine.room, service.loop
        assert loop is not None
        full = {"others": room.frames}
        loop.call_soon_threadsafe(room.take, full)
        timer = threading.Timer(4.5, lambda: loop.call_soon_threadsafe(room.give_back, full))
        timer.start()
        started = time.monotonic()
        assert ask(service)["audio"]["seconds"] == 12.33
        assert time.monotonic() - started > 4.0
        timer.join()


@pytest.mark.parametrize("container", ["flac", "wav", "mp3", "opus"])
def test_a_recording_that_breaks_is_answered_until_there(service: Live, container: Any) -> None:
    clip = encode(noise(12.0, 48_000, seed=5), 48_000, container)
    got = ask(service, body=clip[: len(clip) // 2])
    assert got["error"]["code"] == "bad_audio"
    assert 4.5 < got["error"]["at"] < 6.1
    assert max((one["end"] for one in got["events"]), default=0.0) <= got["error"]["at"]
    as_table = service.http.post(
        "/v1/events?adapter=hears", content=clip[: len(clip) // 2], headers={"Accept": "text/csv"}
    )
    assert as_table.status_code == 200
    assert as_table.headers["x-recording-error"] == f"bad_audio; at={got['error']['at']}"
    told = service.http.post(
        "/v1/events?adapter=hears", content=clip[: len(clip) // 2], headers={"Accept": "application/x-ndjson"}
    )
    assert json.loads(told.text.splitlines()[-1]) == {"type": "error", "error": got["error"]}


@pytest.mark.parametrize(
    ("query", "body", "status", "code"),
    [
        ("adapter=hears", b"no audio at all", 422, "bad_audio"),
        ("adapter=hears", b"", 422, "invalid_request"),
        ("adapter=hears", CLIP[:2_000], 422, "bad_audio"),
        ("adapter=gamma", CLIP, 409, "wrong_task"),
        ("adapter=nobody", CLIP, 404, "unknown_adapter"),
        ("adapter=hears&hop=0.123", CLIP, 422, "invalid_request"),
        ("adapter=hears&hop=5", CLIP, 422, "invalid_request"),
        ("adapter=hears&hysteresis=0.9", CLIP, 422, "invalid_request"),
        ("adapter=hears&threshold=1.5", CLIP, 422, "invalid_request"),
        ("adapter=hears&top_k=3", CLIP, 422, "invalid_request"),
        ("", CLIP, 422, "invalid_request"),
    ],
)
def test_what_is_refused(service: Live, query: str, body: bytes, status: int, code: str) -> None:
    for accept in ("application/json", "application/x-ndjson"):
        assert ask(service, query, status, body, headers={"Accept": accept})["code"] == code


def test_silence(service: Live) -> None:
    silence = encode(np.zeros(300 * 16_000, np.float32), 16_000, "flac")
    got = ask(service, "adapter=hears&threshold=0.99", body=silence)
    assert got["events"] == []
    assert got["audio"]["seconds"] == 300.0


def test_keys_and_their_limits(tiny_ast_dir: Path, tmp_path: Path) -> None:
    with with_keys(tiny_ast_dir, tmp_path, max_long_seconds=30.0) as keyed:
        key = keyed.make(Scope.INFER, concurrency=1, adapters=("acme-*",))
        path = "/v1/events?adapter=acme-one"
        assert keyed.ask(key, "POST", path, content=CLIP).status_code == 200
        assert keyed.ask(key, "POST", "/v1/events?adapter=other-one", content=CLIP).status_code in (403, 404)
        assert keyed.ask(keyed.make(Scope.READ), "POST", path, content=CLIP).status_code == 403
        assert keyed.service.http.post(path, content=CLIP).status_code == 401
        long = encode(noise(31.0)[:, 0], 16_000, "flac")
        answer = keyed.ask(key, "POST", path, content=long)
        assert answer.json()["code"] == "audio_too_long"
        with connect(keyed.service) as held:  # a stream counts until its last line
            fields = f"Transfer-Encoding: chunked\r\nAuthorization: Bearer {key}"
            held.sendall(head(field=fields).replace(b"=hears", b"=acme-one") + chunk(CLIP[: len(CLIP) * 3 // 4]))
            assert held.recv(65_536).startswith(b"HTTP/1.1 200")
            answer = httpx.post(keyed.service.url + path, content=CLIP, headers=bearer(key))
            assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
