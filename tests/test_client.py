"""Both clients against a real server: the same methods, the same answers, typed errors."""

import asyncio
import io
import json
import pydoc
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import getmembers, signature
from pathlib import Path
from typing import Any

import pytest

from service import client_calls
from service.client import AsyncClient, Client, ClientError, ConnectionFailed, ProblemError, TimedOut
from tests.api.desk import ANN
from tests.api.live import Live
from tests.bundles import random_bundle
from tests.synthesis import encode, noise


def test_a_round_trip(live: Live, clip: bytes, tmp_path: Path) -> None:
    file = tmp_path / "clip.wav"
    file.write_bytes(clip)
    files = random_bundle(tmp_path, live.backbone, "pushed", 1)
    with Client(live.url) as client:
        assert client.ready() == {"status": "ready"}
        assert client.backbone()["hidden_size"] == 48
        answer = client.classify([file, clip], ["alpha", "beta"], top_k=1, windows=True)
        assert [(r["clip"], r["adapter"]) for r in answer["results"]] == [
            (c, a) for c in (0, 1) for a in ("alpha", "beta")
        ]
        assert "windows" in answer["results"][0]
        assert client.classify(str(file), "alpha")["audio"][0]["seconds"] == 1.5
        assert client.events(file, "alpha", hop=0.2, threshold=0.9)["parameters"]["alpha@1"]["threshold"] == 0.9
        vector = client.embed(clip, "gamma")["results"][0]["embedding"]
        assert client.score(clip, file, "gamma")["decision"] == "accept"
        assert client.score_embeddings([vector], vector, "gamma")["score"] == pytest.approx(1)

        assert client.push(tmp_path / "pushed-1")["live"] is True
        random_bundle(tmp_path, live.backbone, "pushed", 2)
        assert client.push(tmp_path / "pushed-2", activate=False) | {"digest": ""} == {
            "name": "pushed",
            "version": 2,
            "digest": "",
            "live": False,
        }
        assert client.config("pushed", 1) == files.config
        assert client.weights("pushed", 1) == files.weights
        assert client.activate("pushed", 2)["live"] == 2
        assert client.residency("pushed@1", "load")["state"] == "resident"
        client.activate("pushed", 1, "canary")
        client.delete("pushed", alias="canary")
        client.delete("pushed", 1)
        assert [version["version"] for version in client.adapter("pushed")["versions"]] == [2]
        client.delete("pushed")
        assert "pushed" not in [adapter["name"] for adapter in client.adapters()]


def test_async(live: Live, clip: bytes) -> None:
    async def run() -> None:
        async with AsyncClient(live.url) as client:
            answers = await asyncio.gather(*(client.classify(clip, name) for name in ("alpha", "beta")))
            assert [answer["results"][0]["adapter"] for answer in answers] == ["alpha", "beta"]
            with pytest.raises(ProblemError):
                await client.adapter("nobody")

    asyncio.run(run())


def test_problems_are_typed(live: Live, clip: bytes) -> None:
    with Client(live.url) as client, pytest.raises(ProblemError) as raised:
        client.classify([clip, b"text"], "alpha")
    assert (raised.value.status, raised.value.code) == (422, "bad_audio")
    assert raised.value.members["clip"] == 1
    assert raised.value.retry_after is None


def test_both_clients_have_the_same_documented_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name, value in getmembers(kind, callable) if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)
    assert (Client.push.__doc__ or "").startswith("Uploads a bundle")
    undocumented = [name for name in methods(Client) - {"close", "run"} if not getattr(Client, name).__doc__]
    assert undocumented == []


def test_help_shows_what_a_method_takes_and_answers() -> None:
    told = pydoc.render_doc(Client, renderer=pydoc.plaintext)  # type: ignore[attr-defined]
    assert "delete(self, /, name: str, version: int | None = None, alias: str | None = None)" in told
    assert "history(self, /, name: str, limit: int = 100, after: str | None = None) -> service.answers.H" in told
    assert "Call[" not in told.replace("run(self, call: service.client_calls.Call[", "")
    with Client("http://127.0.0.1:9") as client:
        assert list(signature(client.score).parameters) == ["enrolment", "test", "adapter"]


def test_an_open_file_is_one_clip(live: Live, clip: bytes, tmp_path: Path) -> None:
    file = tmp_path / "clip.wav"
    file.write_bytes(clip)
    with Client(live.url) as client, file.open("rb") as opened, file.open("rb") as again:
        assert len(client.classify(opened, "alpha")["results"]) == 1
        assert len(client.classify([again, io.BytesIO(clip), bytearray(clip)], "alpha")["results"]) == 3
    with Client(live.url) as client, file.open("r", encoding="latin-1") as text, pytest.raises(TypeError, match='"rb"'):
        client.classify(text, "alpha")  # type: ignore[arg-type]


def test_a_list_is_whole_however_many_pages_it_has(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("page-a", "page-b", "page-c"):
        live.publish(tmp_path, name)
    monkeypatch.setattr(client_calls, "PAGE", 2)
    everything = [one["name"] for one in live.http.get("/v1/adapters").json()["adapters"]]

    async def asked() -> list[str]:
        async with AsyncClient(live.url) as client:
            return [one["name"] for one in await client.adapters(q="page-")]

    with Client(live.url) as client:
        assert [one["name"] for one in client.adapters()] == everything
    assert asyncio.run(asked()) == ["page-a", "page-b", "page-c"]
    for name in ("page-a", "page-b", "page-c"):
        live.http.delete(f"/v1/adapters/{name}")


def answered(status: int, members: dict[str, object], *headers: tuple[str, str]) -> bytes:
    body = json.dumps(members).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers), "", ""]).encode() + body


OVERLOADED = answered(429, {"code": "overloaded", "detail": "full"}, ("Retry-After", "1"))
PATIENT = answered(429, {"code": "rate_limited", "detail": "slow"}, ("Retry-After", "3600"))
NOT_READY = answered(503, {"code": "not_ready", "detail": "loading"})
FAILED = answered(503, {"code": "adapter_failed", "detail": "broken"})
GOOD = answered(200, {"results": [], "audio": []})
BROKEN = b""  # the connection ends without an answer


def receive(connection: socket.socket) -> None:
    """Reads a whole request: what closes with bytes unread resets the connection."""
    head, body = b"", b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(65536)
    head, _, body = head.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    while length and len(body) < int(length[1]):
        body += connection.recv(65536)


@contextmanager
def scripted(*answers: bytes | None) -> Iterator[tuple[str, list[float]]]:
    """A server that gives one prepared answer to each connection, None never; its URL, and when it was asked."""
    asked: list[float] = []

    def serve(listener: socket.socket) -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                receive(connection)
                asked.append(time.monotonic())
                if answer is None:
                    over.wait(20)
                else:
                    connection.sendall(answer)

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        over.set()
        thread.join(20)
    assert not thread.is_alive(), "not everything was asked for"


def test_a_refusal_is_retried_after_what_the_service_asks_for() -> None:
    with scripted(OVERLOADED, NOT_READY, GOOD) as (url, asked), Client(url) as client:
        assert client.classify(b"clip", "any")["results"] == []
    assert asked[1] - asked[0] >= 1.0
    assert asked[2] - asked[1] >= 0.2


def test_an_async_refusal_is_retried_too() -> None:
    async def ask(url: str) -> object:
        async with AsyncClient(url) as client:
            return await client.classify(b"clip", "any")

    with scripted(OVERLOADED, GOOD) as (url, asked):
        assert asyncio.run(ask(url)) == {"results": [], "audio": []}
    assert asked[1] - asked[0] >= 1.0


@pytest.mark.parametrize(
    ("answers", "retries", "code"),
    [
        ((FAILED,), 2, "adapter_failed"),
        ((PATIENT,), 2, "rate_limited"),  # longer than the client waits for anything
        ((NOT_READY, NOT_READY), 1, "not_ready"),
        ((OVERLOADED,), 0, "overloaded"),
    ],
)
def test_retries_end(answers: tuple[bytes, ...], retries: int, code: str) -> None:
    with (
        scripted(*answers) as (url, asked),
        Client(url, timeout=10, retries=retries) as client,
        pytest.raises(ProblemError) as raised,
    ):
        client.classify(b"clip", "any")
    assert raised.value.code == code
    assert len(asked) == len(answers)


def test_a_broken_connection_is_tried_again_where_that_does_no_harm() -> None:
    with scripted(BROKEN, GOOD) as (url, _), Client(url) as client:
        assert client.classify(b"clip", "any")["audio"] == []
    with scripted(BROKEN) as (url, _), Client(url) as client, pytest.raises(ConnectionFailed, match=url):
        client.delete("any")


def test_nobody_there_and_no_answer_are_errors_of_their_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with Client(url, retries=1) as client, pytest.raises(ConnectionFailed, match=f"no answer from {url}"):
        client.backbone()
    with scripted(None) as (url, _), Client(url, timeout=0.3) as client, pytest.raises(TimedOut, match=r"0\.3 s"):
        client.backbone()
    assert issubclass(ProblemError, ClientError)
    assert issubclass(TimedOut, ClientError)
    assert issubclass(ConnectionFailed, ClientError)


def test_pushing_what_is_no_bundle_is_told_before_anything_is_sent(live: Live, tmp_path: Path) -> None:
    random_bundle(tmp_path, live.backbone, "mine", 1)
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "mine-1", broken)
    (broken / "adapter_config.json").write_text("[]")
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json and no adapter_model\.safetensors"):
            client.push(tmp_path / "empty")
        with pytest.raises(ValueError, match="no version of 'yours'"):
            client.push(tmp_path / "mine-1", name="yours")
        with pytest.raises(ValueError, match="no JSON object with a name"):
            client.push(broken)


def test_the_client_imports_nothing_heavy() -> None:
    code = "import service.client, sys; print([m for m in ('torch', 'numpy', 'fastapi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_speakers(service: Live) -> None:
    consent = {"by": "Jo", "at": "2026-11-28T12:00:00Z", "text": "Yes."}
    with Client(service.url) as client:
        assert client.put_speaker("called", consent=consent, expires="30d")["consent"] == consent
        assert client.put_speaker("called", expires=None)["expires"] is None
        key = "the same call"
        first, again = (client.enrol("called", ANN, "voice", key.replace(" ", "-")) for _ in range(2))
        assert first == again
        assert [one["id"] for one in first["enrolments"]] == [1, 2]
        assert "called" in [one["speaker"] for one in client.speakers("enrolled", "voice")]
        assert client.verify("called", ANN[0], "voice", threshold=-1.0, prior=0.5)["decision"] == "accept"
        assert client.identify(ANN[0], "voice", among=["called", "nobody"])["searched"] == 1
        assert len(client.export_speaker("called")["enrolments"]) == 2
        client.delete_speaker("called", 1)
        assert len(client.speaker("called", "voice")["adapters"][0]["enrolments"]) == 1
        assert client.opt_out("called")["status"] == "opted_out"
        with pytest.raises(ProblemError, match="speaker_opted_out"):
            client.enrol("called", ANN, "voice")
        assert client.opt_in("called")["status"] == "pending"
        client.delete_speaker("called")
        with pytest.raises(ProblemError, match="unknown_speaker"):
            client.speaker("called")


def test_jobs(service: Live, clip: bytes) -> None:
    with Client(service.url) as client:
        found = client.add_job(clip, "alpha", hop=0.1, threshold=0.1, merge_gap=0.0)["id"]
        added = client.enrol_many({"called-ann": ANN, "called-bad": b"no audio"}, "voice", "called-many")
        assert client.enrol_many({"called-ann": ANN, "called-bad": b"no audio"}, "voice", "called-many") == added
        for one in (found, added["id"]):
            while (job := client.job(one))["status"] not in ("done", "failed"):
                time.sleep(0.05)
        assert (job["kind"], job["progress"]) == ("enrolment", 1.0)
        assert client.job_result(found) == client.events(clip, "alpha", hop=0.1, threshold=0.1, merge_gap=0.0)
        rows = client.job_result(job["id"])["speakers"]
        assert [(row["speaker"], row["result"]) for row in rows] == [
            ("called-ann", "enrolled"),
            ("called-bad", "bad_audio"),
        ]
        assert job in client.jobs("done")
        client.delete_job(job["id"])
        with pytest.raises(ProblemError, match="unknown_job"):
            client.job(job["id"])


def test_a_recording_is_sent_from_disk_by_both(live: Live, tmp_path: Path) -> None:
    live.publish(tmp_path, "client-hears", seed=3, labels=("cat", "dog"), activation="softmax")
    path, pieces = tmp_path / "long.wav", list[int]()
    path.write_bytes(encode(noise(12.0, seed=1)))

    async def heard() -> Any:
        async with AsyncClient(live.url) as client:
            return await client.events(path, "client-hears", threshold=0.1)

    with Client(live.url) as client:
        told = client.events(path, "client-hears", threshold=0.1, sent=pieces.append)
        with pytest.raises(ProblemError, match="unknown_adapter"):
            client.events(path, "nobody")
    assert len(pieces) > 2
    assert sum(pieces) == path.stat().st_size
    assert told["audio"]["seconds"] == 12.0
    assert [event["end"] for event in told["events"]] == [12.0, 12.0]
    assert asyncio.run(heard()) == told
