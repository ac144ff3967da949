"""The end of a server process: what a signal does to readiness, to new connections and to what was admitted."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from service.model.loading import load_backbone
from service.registry.bundle import BundleFiles
from tests.bundles import random_bundle
from tests.cli.process import ENVIRONMENT, Served, serving
from tests.engine.faults import HungFile, needs_leases
from tests.ports import free_port
from tests.synthesis import encode, noise
from tests.waiting import soon

CLIP = encode(noise(0.9))
HALF = len(CLIP) // 2
DELAY = 5.0  # seconds in which a busy machine answers what is asked before the port closes


@pytest.fixture(scope="module")
def bundle(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleFiles:
    backbone = load_backbone(str(tiny_ast_dir), "cpu", "float32")
    return random_bundle(tmp_path_factory.mktemp("bundle"), backbone.spec, "alpha")


@contextmanager
def half_asked(served: Served, bundle: BundleFiles) -> Iterator[socket.socket]:
    """A request that the server has begun to read: its head and half of its clip are there."""
    parts = {"config": bundle.config, "weights": bundle.weights}
    assert httpx.post(f"{served.url}/v1/adapters/alpha/versions", files=parts, timeout=60).status_code == 201
    place = urlsplit(served.url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        head = f"POST /v1/classify?adapter=alpha HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(CLIP)}\r\n\r\n"
        connection.sendall(head.encode() + CLIP[:HALF])
        soon(lambda: "ipet_requests_in_flight 2.0" in httpx.get(f"{served.url}/metrics").text, 20)  # with this one
        yield connection


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an HTTP answer after which the server closes the connection."""
    received = b""
    while chunk := connection.recv(65_536):
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def accepts(url: str) -> bool:
    place = urlsplit(url)
    try:
        socket.create_connection((place.hostname, place.port), timeout=5).close()
    except OSError:
        return False
    return True


def test_readiness_turns_off_then_the_port_closes_and_what_was_admitted_is_finished(
    tiny_ast_dir: Path, tmp_path: Path, bundle: BundleFiles
) -> None:
    with (
        serving(tiny_ast_dir, tmp_path / "data", shutdown_delay=DELAY) as served,
        httpx.Client() as idle,
        half_asked(served, bundle) as first,
    ):
        assert idle.get(f"{served.url}/healthz").headers.get("connection") != "close"
        served.process.send_signal(signal.SIGINT)
        started = time.monotonic()
        soon(lambda: httpx.get(f"{served.url}/readyz").status_code == 503, DELAY / 2)
        ready = httpx.get(f"{served.url}/readyz")
        assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
        assert "stopping" in ready.json()["detail"]
        assert ready.headers["connection"] == "close"
        assert httpx.post(f"{served.url}/v1/classify?adapter=alpha", content=CLIP, timeout=60).status_code == 200
        soon(lambda: not accepts(served.url), 20)
        assert time.monotonic() - started >= DELAY - 0.1
        with pytest.raises(httpx.TransportError):  # a connection kept alive is closed too
            idle.get(f"{served.url}/healthz")
        first.sendall(CLIP[HALF:])
        status, headers, body = answer(first)
        assert (status, headers["connection"]) == (200, "close")
        assert len(json.loads(body)["results"]) == 1
        errors = served.end()
    assert served.process.returncode == 0, errors
    assert "Traceback" not in errors


def test_a_second_signal_ends_it_at_once(tiny_ast_dir: Path, tmp_path: Path, bundle: BundleFiles) -> None:
    with serving(tiny_ast_dir, tmp_path / "data", log_level="warning") as served, half_asked(served, bundle):
        served.process.send_signal(signal.SIGTERM)
        soon(lambda: not accepts(served.url), 20)
        started = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert '"level": "info"' not in served.end()
    assert time.monotonic() - started < 10  # half of --shutdown-timeout
    assert served.process.returncode == 128 + signal.SIGTERM


@contextmanager
def reader_kept_waiting(fifo: Path) -> Iterator[None]:
    """Once somebody reads the pipe; nothing comes out of it, not even its end."""
    writers: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):
            writers.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    soon(is_read, 60)
    yield
    os.close(writers[0])


def test_a_load_that_hangs_does_not_keep_it(tiny_ast_dir: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundles" / "endless"
    bundle.mkdir(parents=True)
    os.mkfifo(bundle / "adapter_config.json")
    port = free_port()
    words = ["--backbone", tiny_ast_dir, "--data-dir", tmp_path / "data", "--adapters", bundle.parent, "--port", port]
    with subprocess.Popen(
        [sys.executable, "-m", "service", "serve", *map(str, words)], stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        try:
            served = Served(process, f"http://127.0.0.1:{port}")
            with reader_kept_waiting(bundle / "adapter_config.json"):
                assert httpx.get(f"{served.url}/readyz", timeout=60).status_code == 503
                process.send_signal(signal.SIGTERM)
                errors = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 0, errors


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root for a process 1")
def test_a_container_that_is_stopped_while_it_starts_ends_at_once(tiny_ast_dir: Path, tmp_path: Path) -> None:
    """Process 1 of a PID namespace has no default for signals, and imports take seconds."""
    port = free_port()
    words = ["--backbone", tiny_ast_dir, "--data-dir", tmp_path / "data", "--port", port]
    command = ["unshare", "--pid", "--fork", sys.executable, "-m", "service", "serve", *map(str, words)]
    with subprocess.Popen(command, env=ENVIRONMENT) as unshare:
        try:
            soon(lambda: accepts(f"http://127.0.0.1:{port}"), 60)  # bound before the imports
            (first,) = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
            os.kill(int(first), signal.SIGTERM)
            assert unshare.wait(30) == 128 + signal.SIGTERM  # the import of one library may take seconds
        finally:
            if unshare.poll() is None:
                os.kill(int(first), signal.SIGKILL)


DEAD_DEVICE = """
import sys
from pathlib import Path
import torch
from service.cli.serving import run
from service.model.backbone import Backbone
from service.settings import Settings

embeddings = Backbone._embeddings

def dying(*args):
    if Path(sys.argv[1]).exists():
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")
    return embeddings(*args)

Backbone._embeddings = dying
run(Settings())
"""


@contextmanager
def dying(marker: Path, backbone: Path, data_dir: Path) -> Iterator[Served]:
    """`ipet serve` in a process of its own, whose device is dead once `marker` is there."""
    given = {"backbone": backbone, "data_dir": data_dir, "port": 0, "device": "cpu", "dtype": "float32"}
    with subprocess.Popen(
        [sys.executable, "-c", DEAD_DEVICE, str(marker)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {f"IPET_{name.upper()}": str(value) for name, value in given.items()},
    ) as process:
        try:
            assert process.stdout is not None
            yield Served(process, process.stdout.readline().split()[4])
        finally:
            process.kill()


def publish(served: Served, bundle: BundleFiles) -> None:
    parts = {"config": bundle.config, "weights": bundle.weights, "card": b"# A card"}
    assert httpx.post(f"{served.url}/v1/adapters/alpha/versions", files=parts, timeout=60).status_code == 201


def test_a_process_whose_device_is_dead_ends(tiny_ast_dir: Path, tmp_path: Path, bundle: BundleFiles) -> None:
    """As CUDA's context dies: those who wait are told, then the process ends for an orchestrator to start another."""
    dead = tmp_path / "dead"
    with dying(dead, tiny_ast_dir, tmp_path / "data") as served:
        publish(served, bundle)
        assert httpx.post(f"{served.url}/v1/classify?adapter=alpha", content=CLIP, timeout=60).status_code == 200
        dead.touch()
        assert httpx.post(f"{served.url}/v1/classify?adapter=alpha", content=CLIP, timeout=60).status_code in (500, 503)
        errors = served.end()
    assert served.process.returncode == 1
    assert "error: the device's context is dead" in errors


@needs_leases
def test_a_process_whose_threads_hang_ends_by_its_deadline(
    tiny_ast_dir: Path, tmp_path: Path, bundle: BundleFiles
) -> None:
    """A load and a download hang on a disk that does not answer."""
    data = tmp_path / "data"
    with serving(tiny_ast_dir, data, shutdown_timeout=1.0) as served:
        publish(served, bundle)
        files = [HungFile(next(data.rglob(name))) for name in ("adapter_model.safetensors", "README.md")]
        place = urlsplit(served.url)
        heads = ("POST /v1/adapters/alpha/load", "GET /v1/adapters/alpha/versions/1/card", "GET /readyz")
        connections = [socket.create_connection((place.hostname, place.port), timeout=20) for _ in heads]
        for connection, head in zip(connections, heads, strict=True):
            connection.sendall(f"{head} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        assert connections[-1].recv(100).startswith(b"HTTP/1.1 200")
        soon(lambda: "ipet_requests_in_flight 3.0" in httpx.get(f"{served.url}/metrics").text, 20)  # with this one
        started = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        served.end(60)
        assert time.monotonic() - started < 1.0 + 3.0 + 10.0  # the files hang for 45
        for held in (*files, *connections):
            held.close()
