"""Deadlines, overload and clients that leave."""

import asyncio
import http.client
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.api.context import Runtime
from service.engine.engine import Place
from service.engine.runner import Runner
from service.jobs.store import open_jobs
from service.model.backbone import Backbone
from service.model.loading import load_backbone
from service.registry.store import Registry
from service.settings import Settings
from service.speakers.galleries import Cohorts, Galleries
from service.speakers.store import open_speakers
from service.telemetry import Telemetry
from tests.api.live import Live, running, settings_for
from tests.bundles import random_bundle
from tests.engine.asking import open_engine
from tests.engine.faults import Hang, faulty
from tests.synthesis import encode, noise
from tests.waiting import soon

ROW = 73  # work of one window of 64 frames on the tiny AST, in window-frames: its 42 tokens attend to each other


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An engine that never answers; the list tells what became of the calls."""
    events: list[str] = []

    async def infer(*args: object, **kwargs: object) -> None:
        events.append("asked")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    monkeypatch.setattr(Place, "infer", infer)
    return events


def test_a_client_that_leaves_cancels_its_work(live: Live, clip: bytes, stuck: list[str]) -> None:
    place = urlsplit(live.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port)
    connection.request("POST", "/v1/classify?adapter=alpha", clip)
    soon(lambda: "asked" in stuck, 20)
    connection.close()
    soon(lambda: "cancelled" in stuck, 20)
    soon(lambda: 'code="499",route="/v1/classify"' in live.http.get("/metrics").text, 20)
    assert live.context.budget.held == 0


def test_a_client_that_leaves_amid_its_body(live: Live) -> None:
    place = urlsplit(live.url)
    with socket.create_connection((place.hostname, place.port)) as connection:
        connection.sendall(
            b"POST /v1/classify?adapter=alpha HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nRIFF"
        )
        time.sleep(0.1)
    assert live.http.get("/readyz").status_code == 200
    soon(lambda: live.context.budget.held == 0, 20)


def test_deadline_of_the_request(live: Live, clip: bytes, stuck: list[str]) -> None:
    for milliseconds in ("200", "2000", "20000"):  # on a slow machine it may be over before the engine is asked
        headers = {"X-Request-Timeout-Ms": milliseconds}
        answer = live.http.post("/v1/classify?adapter=alpha", content=clip, headers=headers)
        assert refused(answer) == (504, "deadline_exceeded")
        if stuck:
            break
    assert stuck == ["asked", "cancelled"]


@pytest.mark.parametrize("header", ["0", "-1", "soon", "1e3", "99999999999"])
def test_bad_deadlines(live: Live, clip: bytes, header: str) -> None:
    answer = live.http.post("/v1/classify?adapter=alpha", content=clip, headers={"X-Request-Timeout-Ms": header})
    assert refused(answer) == (422, "invalid_request")


def test_a_body_that_does_not_come(tiny_ast: Backbone, tiny_ast_dir: Path, tmp_path: Path) -> None:
    random_bundle(tmp_path / "bundles", tiny_ast.spec, "alpha")
    settings = settings_for(tiny_ast_dir, tmp_path / "data", request_timeout=2.0, adapters=tmp_path / "bundles")
    with running(settings) as service:
        place = urlsplit(service.url)
        with socket.create_connection((place.hostname, place.port)) as connection:
            connection.sendall(
                b"POST /v1/classify?adapter=alpha HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nRIFF"
            )
            connection.settimeout(30)
            assert connection.recv(100).startswith(b"HTTP/1.1 504 ")


def test_a_stopping_service_tells_those_it_cannot_answer(tiny_ast_dir: Path, tmp_path: Path) -> None:
    with socket.socket() as connection:
        with running(settings_for(tiny_ast_dir, tmp_path / "data", shutdown_timeout=0.3)) as service:
            service.publish(tmp_path, "alpha")
            place = urlsplit(service.url)
            connection.connect((place.hostname, place.port))
            connection.sendall(
                b"POST /v1/classify?adapter=alpha HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nRIFF"
            )
            while "ipet_requests_in_flight 2.0" not in service.http.get("/metrics").text:  # with this one
                time.sleep(0.02)
        connection.settimeout(10)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"stopping" in answer


def test_overload(tiny_ast_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the device is busy the queue fills up; what does not fit is refused at once, the rest is answered."""
    go_on, run = threading.Event(), Runner.run

    def slow(runner: Runner, *batch: Any) -> Any:
        go_on.wait(30)
        return run(runner, *batch)

    with running(settings_for(tiny_ast_dir, tmp_path / "data", queue_seconds=3.0)) as service:
        service.publish(tmp_path, "alpha")
        monkeypatch.setattr(Runner, "run", slow)
        sound = encode(noise(0.5))

        def ask() -> httpx.Response:
            answer = httpx.post(f"{service.url}/v1/classify?adapter=alpha", content=sound, timeout=30)
            if answer.status_code != 200:
                go_on.set()
            return answer

        with ThreadPoolExecutor(12) as pool:
            answers = [future.result() for future in [pool.submit(ask) for _ in range(12)]]
        assert {answer.status_code for answer in answers} == {200, 429}
        for answer in answers:
            if answer.status_code == 429:
                assert refused(answer) == (429, "overloaded")
                assert int(answer.headers["retry-after"]) >= 1
        alone = service.http.post("/v1/classify?adapter=alpha", content=encode(noise(20.0)))
        assert refused(alone) == (413, "payload_too_large")
        assert ask().status_code == 200


def test_a_device_that_hangs_turns_readiness_off(tiny_ast_dir: Path, tmp_path: Path, clip: bytes) -> None:
    hang, faults = Hang(), []

    def opener(settings: Settings, telemetry: Telemetry) -> Runtime:
        backbone = faulty(load_backbone(settings.backbone, settings.device, settings.dtype))
        faults.append(backbone)
        registry = Registry(settings.data_dir, backbone.spec)
        engine, speakers = open_engine(backbone, registry, settings, telemetry), open_speakers(settings)
        galleries = Galleries(speakers.database, speakers.vault)
        rest = (speakers, galleries, Cohorts(registry), open_jobs(settings))
        return Runtime(backbone.spec, "cpu", "float32", registry, engine, *rest)

    with running(settings_for(tiny_ast_dir, tmp_path / "data", device_timeout=2.0), opener) as service:
        service.publish(tmp_path, "alpha")
        faults[0].fault = hang
        try:
            answer = service.http.post("/v1/classify?adapter=alpha", content=clip)
            assert refused(answer) == (503, "not_ready")
            ready = service.http.get("/readyz")
            assert refused(ready) == (503, "not_ready")
            assert "has not returned" in ready.json()["detail"]
            assert service.http.get("/healthz").status_code == 200
            assert "ipet_device_broken 1.0" in service.http.get("/metrics").text
        finally:
            faults[0].fault = lambda rows: None
            hang.released.set()
        while service.http.get("/readyz").status_code != 200:
            time.sleep(0.02)
        assert service.http.post("/v1/classify?adapter=alpha", content=clip).status_code == 200


class Brake:
    """Holds the device until released; counts the batches that reach it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.running, self.released = threading.Event(), threading.Event()
        run = Runner.run

        def slow(runner: Runner, batch: Any) -> Any:
            self.rows.append(sum(rows.count for rows in batch))
            self.running.set()
            assert self.released.wait(30)
            return run(runner, batch)

        monkeypatch.setattr(Runner, "run", slow)


def queued_frames(live: Live) -> int:
    return live.context.runtime.engine.room.held


def wait_for_queue(live: Live, frames: int) -> None:
    soon(lambda: queued_frames(live) == frames, 20)


def test_what_clients_abandon_in_the_queue_never_reaches_the_device(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sockets that close and deadlines that pass behind others: the device runs the first and the last request only."""
    short, place = encode(noise(0.5)), urlsplit(live.url)
    live.http.post("/v1/classify?adapter=alpha", content=short).raise_for_status()
    brake = Brake(monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        path = f"{live.url}/v1/classify?adapter=alpha"
        first = pool.submit(httpx.post, path, content=short, timeout=30)
        assert brake.running.wait(10)
        gone = [http.client.HTTPConnection(place.hostname or "", place.port) for _ in range(4)]
        for connection in gone:
            connection.request("POST", "/v1/classify?adapter=alpha", short)
        wait_for_queue(live, 5 * ROW)  # with the one that runs
        late = httpx.post(path, content=short, headers={"X-Request-Timeout-Ms": "200"})
        assert refused(late) == (504, "deadline_exceeded")
        last = pool.submit(httpx.post, path, content=short, timeout=30)
        wait_for_queue(live, 6 * ROW)
        for connection in gone:
            connection.close()
        wait_for_queue(live, 2 * ROW)
        brake.released.set()
        assert (first.result().status_code, last.result().status_code) == (200, 200)
    assert brake.rows == [1, 1]
    assert queued_frames(live) == 0


def test_a_full_queue_refuses_before_anything_is_decoded(
    tiny_ast_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One adapter's flood is refused without its bodies being read, and the other adapter is let in."""
    with running(settings_for(tiny_ast_dir, tmp_path / "data", queue_seconds=ROW * 6 / 100)) as service:
        for name in ("busy", "quiet"):
            service.publish(tmp_path, name)
        short, place = encode(noise(0.5)), urlsplit(service.url)
        brake = Brake(monkeypatch)
        with ThreadPoolExecutor(4) as pool:
            path = f"{service.url}/v1/classify?adapter="
            accepted = [pool.submit(httpx.post, path + "busy", content=short, timeout=30)]
            assert brake.running.wait(10)
            wait_for_queue(service, ROW)
            for queued in (1, 2):
                accepted.append(pool.submit(httpx.post, path + "busy", content=short, timeout=30))
                wait_for_queue(service, (1 + queued) * ROW)
            while not (decoded := decoded_clips(service)).endswith(" 3.0"):
                time.sleep(0.01)
            for _ in range(5):
                with socket.create_connection((place.hostname, place.port)) as connection:
                    connection.sendall(
                        b"POST /v1/classify?adapter=busy HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n"
                    )
                    connection.settimeout(10)
                    assert connection.recv(100).startswith(b"HTTP/1.1 429 ")
            assert decoded_clips(service) == decoded
            accepted.append(pool.submit(httpx.post, path + "quiet", content=short, timeout=30))
            wait_for_queue(service, 4 * ROW)
            brake.released.set()
            assert [answer.result().status_code for answer in accepted] == [200] * 4


def decoded_clips(live: Live) -> str:
    return next(
        line for line in live.http.get("/metrics").text.splitlines() if line.startswith("ipet_decode_seconds_count")
    )
