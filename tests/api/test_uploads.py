"""Uploads over HTTP: refused where they go wrong, run once before they count, retried safely; a full disk."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch

from service.registry.bundle import BundleFiles
from tests.api.live import Live, running, settings_for
from tests.api.test_adapters import refused
from tests.bundles import random_bundle

BOUNDARY = "cut-here"


def parts(**contents: bytes) -> bytes:
    """A multipart body that has not ended yet."""
    return b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in contents.items()
    )


def send_and_wait(live: Live, name: str, start: bytes, announced: int = 60_000_000) -> tuple[int, str, float]:
    """Sends the beginning of an upload and nothing more: status and code of what comes back, and after how long."""
    url = httpx.URL(live.url)
    head = (
        f"POST /v1/adapters/{name}/versions HTTP/1.1\r\nHost: {url.host}:{url.port}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {announced}\r\n\r\n"
    )
    started = time.monotonic()
    with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
        connection.sendall(head.encode() + start)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
            if b"\r\n\r\n" in answer and answer.endswith(b"}"):
                break
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    return int(answer.split()[1]), body["code"], time.monotonic() - started


def incoming(live: Live) -> list[Path]:
    data_dir = live.context.settings.data_dir
    return [path for path in (data_dir / "incoming").rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_bad_config_is_refused_before_the_weights_come(live: Live, tmp_path: Path) -> None:
    good = random_bundle(tmp_path, live.backbone, "early")
    config = json.dumps(json.loads(good.config) | {"prompt_length": 999}).encode()
    status, code, seconds = send_and_wait(live, "early", parts(config=config, weights=b"")[:-2])
    assert (status, code) == (422, "invalid_bundle")
    assert seconds < 10
    assert incoming(live) == []


@pytest.mark.parametrize("config_first", [True, False])
def test_bad_weights_are_refused_at_their_header(live: Live, tmp_path: Path, config_first: bool) -> None:
    good = random_bundle(tmp_path, live.backbone, "early")
    weights = b"\xff" * 300_000  # says that its header has 2**64 bytes
    given = {"config": good.config, "weights": weights} if config_first else {"weights": weights}
    assert send_and_wait(live, "early", parts(**given)[:-2])[:2] == (422, "invalid_bundle")
    assert incoming(live) == []


def test_bytes_behind_the_tensors_are_refused(live: Live, tmp_path: Path) -> None:
    good = random_bundle(tmp_path, live.backbone, "early")
    answer = live.upload(BundleFiles(good.config, good.weights + bytes(2_000_000)), "early")
    assert refused(answer) == (422, "invalid_bundle")
    assert "larger than" in answer.json()["detail"]


def test_the_parts_may_come_in_any_order(live: Live, tmp_path: Path) -> None:
    files = random_bundle(tmp_path, live.backbone, "reordered")
    body = parts(card=b"# card", weights=files.weights, config=files.config) + f"--{BOUNDARY}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    answer = live.http.post("/v1/adapters/reordered/versions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["digest"]) == (201, files.digest)
    assert incoming(live) == []


def test_a_body_that_breaks_off_leaves_nothing(live: Live, tmp_path: Path) -> None:
    files = random_bundle(tmp_path, live.backbone, "broken-off")
    body = parts(config=files.config, weights=files.weights[:-100])
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    answer = live.http.post("/v1/adapters/broken-off/versions", content=body, headers=headers)
    assert refused(answer) == (422, "invalid_request")
    assert refused(live.http.get("/v1/adapters/broken-off")) == (404, "unknown_adapter")
    assert incoming(live) == []


def test_an_adapter_must_run_once_with_finite_outputs(live: Live, tmp_path: Path) -> None:
    files = random_bundle(tmp_path, live.backbone, "explosive")
    tensors = safetensors.torch.load(files.weights)
    wild = {name: torch.full_like(tensor, 3e38) for name, tensor in tensors.items() if name.startswith("head.linear")}
    answer = live.upload(BundleFiles(files.config, safetensors.torch.save(tensors | wild)), "explosive")
    assert refused(answer) == (422, "invalid_bundle")
    assert "outputs on noise and silence are not finite in float32" in answer.json()["detail"]
    assert refused(live.http.get("/v1/adapters/explosive")) == (404, "unknown_adapter")


def test_not_finite_values_are_named(live: Live, tmp_path: Path) -> None:
    files = random_bundle(tmp_path, live.backbone, "holes")
    tensors = safetensors.torch.load(files.weights)
    tensors["layers.1.prompt"][0, 0] = float("nan")
    answer = live.upload(BundleFiles(files.config, safetensors.torch.save(tensors)), "holes")
    assert refused(answer) == (422, "invalid_bundle")
    assert "layers.1.prompt: holds NaN" in answer.json()["detail"]


def upload(live: Live, files: BundleFiles, name: str, key: str) -> httpx.Response:
    given = {"config": files.config, "weights": files.weights}
    return live.http.post(f"/v1/adapters/{name}/versions", files=given, headers={"Idempotency-Key": key})


def test_a_retry_with_its_key_is_answered_as_before(tiny_ast_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_ast_dir, tmp_path / "data")
    with running(settings) as live:
        files, others = (random_bundle(tmp_path, live.backbone, "retried", seed) for seed in (1, 2))
        first = upload(live, files, "retried", "key-1")
        assert first.status_code == 201
        assert "Idempotency-Replayed" not in first.headers
        again = upload(live, files, "retried", "key-1")
        assert (again.status_code, again.json()) == (201, first.json())
        assert again.headers["Idempotency-Replayed"] == "true"
        mistaken = upload(live, others, "retried", "key-1")
        assert refused(mistaken) == (422, "invalid_request")
        assert "retried@1" in mistaken.json()["detail"]
        assert upload(live, others, "retried", "key-2").json()["version"] == 2
        assert refused(upload(live, files, "retried", "spaces are no key")) == (422, "invalid_request")
    with running(settings) as live:
        live.http.delete("/v1/adapters/retried")
        after = upload(live, files, "retried", "key-1")
        assert (after.status_code, after.json()) == (201, first.json())
        assert refused(live.http.get("/v1/adapters/retried")) == (404, "unknown_adapter")  # nothing is revived


def test_concurrent_uploads_of_one_name(live: Live, tmp_path: Path) -> None:
    bundles = [random_bundle(tmp_path, live.backbone, "crowd", seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda files: upload(live, files, "crowd", f"crowd-{files.digest}"), bundles * 2))
    assert {answer.status_code for answer in answers} == {201}
    assert sorted(answer.json()["version"] for answer in answers[:6]) == [1, 2, 3, 4, 5, 6]
    assert [answer.json() for answer in answers[:6]] == [answer.json() for answer in answers[6:]]
    for files, answer in zip(bundles, answers, strict=False):
        version = answer.json()["version"]
        assert live.http.get(f"/v1/adapters/crowd/versions/{version}/weights").content == files.weights


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 9 MiB, of which the registry leaves 8 free."""
    directory = tmp_path / "small"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(directory)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
        failure = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        failure = str(error)
    if failure:
        pytest.skip(f"no small file system can be mounted here: {failure}")
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


def test_a_full_disk_refuses_uploads_and_serves_on(
    small_disk: Path, tiny_ast_dir: Path, tmp_path: Path, clip: bytes
) -> None:
    with running(settings_for(tiny_ast_dir, small_disk / "data")) as live:
        live.publish(tmp_path, "first", seed=0)
        answers: list[Any] = []
        for seed in range(100):
            answers.append(live.upload(random_bundle(tmp_path, live.backbone, "filler", seed), "filler"))
            if answers[-1].status_code != 201:
                break
        assert refused(answers[-1]) == (507, "storage_full")
        assert len(answers) > 5
        full = small_disk / "full"
        with full.open("wb", buffering=0) as file:  # somebody else takes the rest, up to the last byte
            while True:
                try:
                    file.write(bytes(65536))
                except OSError:
                    break
        late = random_bundle(tmp_path, live.backbone, "late", 1)
        assert refused(live.upload(late, "late")) == (507, "storage_full")
        for reference in ("first", "filler", f"filler@{len(answers) - 1}"):
            assert live.http.post(f"/v1/classify?adapter={reference}", content=clip).status_code == 200
        assert live.http.get("/readyz").json()["status"] == "ready"
        assert incoming(live) == []
        live.context.runtime.registry._grace = 0.0
        used = shutil.disk_usage(small_disk).used
        for path in ("filler/versions/1", "filler/versions/2", "filler"):
            assert live.http.delete(f"/v1/adapters/{path}").status_code == 204
        assert live.http.get("/v1/adapters/filler/history").status_code == 200
        assert shutil.disk_usage(small_disk).used < used
        full.unlink()
        assert live.upload(late, "late").status_code == 201
