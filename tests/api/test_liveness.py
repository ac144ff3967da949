"""Probes are answered at once, whatever else the service is busy with or waits for."""

import sqlite3
import statistics
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from service.model.loading import load_backbone
from tests.api.flood import Answered, Clients, flooding, request_of
from tests.bundles import random_bundle
from tests.cli.process import serving
from tests.waiting import soon

pytestmark = pytest.mark.alone

PROBES = ("/healthz", "/readyz", "/metrics", "/")
ASLEEP = "a sleeper is woken late"  # by a machine that has more to do than processors
FEWEST = 5  # probes of each kind
TIMEOUT_MS = "6000"  # of each write


def multipart(config: bytes, weights: bytes) -> bytes:
    head = '--x\r\nContent-Disposition: form-data; name="{}"\r\n\r\n'
    parts = ((head.format(name).encode() + content) for name, content in (("config", config), ("weights", weights)))
    return b"\r\n".join(parts) + b"\r\n--x--\r\n"


def probe(url: str, seconds: float) -> dict[str, list[float]]:
    """Seconds that each probe took, one after the other on a kept connection."""
    found: dict[str, list[float]] = {path: [] for path in (*PROBES, ASLEEP)}
    with httpx.Client(base_url=url, timeout=20.0) as http:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends or len(found[ASLEEP]) < FEWEST:
            for path in PROBES:
                started = time.monotonic()
                assert http.get(path).status_code == 200
                found[path].append(time.monotonic() - started)
            started = time.monotonic()
            time.sleep(0.01)
            found[ASLEEP].append(time.monotonic() - started - 0.01)
    return found


def ask(
    tiny: Path, directory: Path, clip: bytes, uploads: int, clients: int, seconds: float
) -> tuple[dict[str, list[float]], list[list[Answered]]]:
    """45 writers on a locked database, uploads and a flood of classify at once, and probes meanwhile."""
    bundle = random_bundle(directory, load_backbone(str(tiny), "cpu", "float32").spec, "alpha")
    body = multipart(bundle.config, bundle.weights)
    upload = request_of(
        "POST",
        "/v1/adapters/alpha/versions",
        body,
        content_type="multipart/form-data; boundary=x",
        x_request_timeout_ms=TIMEOUT_MS,
    )
    move = request_of("PUT", "/v1/adapters/alpha/aliases/canary", b'{"version": 1}', x_request_timeout_ms=TIMEOUT_MS)
    classify = request_of("POST", "/v1/classify?adapter=alpha", clip)
    with (directory / "log").open("w") as log, serving(tiny, directory / "data", log) as served:
        assert (
            httpx.post(
                f"{served.url}/v1/adapters/alpha/versions",
                files={"config": bundle.config, "weights": bundle.weights},
                timeout=60,
            ).status_code
            == 201
        )
        with sqlite3.connect(directory / "data" / "registry.sqlite", isolation_level=None) as database:
            database.execute("BEGIN IMMEDIATE")
            kinds = Clients(45, move), Clients(uploads, upload), Clients(clients, classify, seconds)
            with flooding(served.url, *kinds) as answers:
                time.sleep(1.0)
                refused = 'ipet_requests_total{code="429",route="/v1/adapters/'  # beyond the writers that there may be
                soon(lambda: refused in httpx.get(f"{served.url}/metrics", timeout=20).text, 20)
                took = probe(served.url, seconds)
                database.execute("ROLLBACK")
                return took, answers.result()


def judge(answers: list[list[Answered]]) -> Counter[int]:
    """Every write was answered by its deadline, and who found no place was told when to try again."""
    moves, uploads, classified = answers
    for answer in (*moves, *uploads):
        assert answer.status in (200, 201, 429, 503, 504), answer
        assert answer.seconds < 15.0  # on a busy machine
        assert answer.status != 429 or "retry-after: " in answer.head
    assert {answer.status for answer in classified} <= {200, 429}
    assert 200 in {answer.status for answer in classified}
    return Counter(answer.status for answer in (*moves, *uploads))


def test_probes_answer_while_writers_wait(tiny_ast_dir: Path, tmp_path: Path, clip: bytes) -> None:
    took, answers = ask(tiny_ast_dir, tmp_path, clip, uploads=25, clients=4, seconds=2.0)
    assert judge(answers)[429] > 0  # 70 writers, 64 places
    for path, seconds in took.items():
        assert statistics.median(seconds) < 0.25, path  # on a machine that does much else


@pytest.mark.slow
def test_probes_answer_within_fifty_milliseconds(tiny_ast_dir: Path, tmp_path: Path, clip: bytes) -> None:
    took, answers = ask(tiny_ast_dir, tmp_path, clip, uploads=120, clients=16, seconds=20.0)
    print(f"\nwrites by status: {dict(judge(answers))}; classified: {len(answers[2])}")
    p99 = {what: statistics.quantiles(seconds, n=100)[98] for what, seconds in took.items()}
    for what, seconds in took.items():
        median, most = statistics.median(seconds), max(seconds)
        print(f"{what}: {len(seconds)}, p50 {median * 1e3:.1f}, p99 {p99[what] * 1e3:.1f}, most {most * 1e3:.1f} ms")
    for path in PROBES:
        assert p99[path] < 0.05 + p99[ASLEEP], path
