"""The service on a real Ray of this machine: two fronts and two devices on one PostgreSQL. Run by `make test-ray`."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.access.key_table import KeyTable
from service.access.keys import Grant, Rate, Scope
from service.database import Database
from tests.api.live import Live, running, settings_for
from tests.bundles import random_bundle
from tests.cluster.processes import DEVICE, FRONT, Cluster, cluster, processor_seconds_of
from tests.postgres import Postgres
from tests.waiting import soon

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make test-ray"),
    pytest.mark.timeout(3600),
]

PLAN = 'fronts = 2\ndevices = ["cpu", "cpu"]\nmax_devices = 3\nqueued_seconds = 20\nthreads = 1'
NAMES = [f"adapter-{i}" for i in range(8)]
WHOLE_SECONDS = 10.0  # of a core, that a new process takes until all is whole: how long that is, others decide
SILENT_SECONDS = 10.0


@pytest.fixture(scope="module")
def database(postgres_server: Postgres) -> str:
    return postgres_server.new_database()


@pytest.fixture(scope="module")
def served(database: str, tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("ray")
    serve = {"backbone": tiny_ast_dir, "dtype": "float32", "adapter_slots": 4, "max_prompt_length": 16}
    serve |= {"max_bottleneck_dim": 16, "inference_keys": "asks", "database_url": database}
    with cluster(directory, PLAN, serve) as one:
        yield one


@pytest.fixture(scope="module")
def alone(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The same backbone in one process."""
    directory = tmp_path_factory.mktemp("alone")
    with running(settings_for(tiny_ast_dir, directory / "data")) as live:
        yield live


@pytest.fixture(scope="module")
def expected(served: Cluster, alone: Live, clip: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the one process answers, of adapters that both have."""
    directory = tmp_path_factory.mktemp("bundles")
    answers = {}
    with served.client() as http:
        for seed, name in enumerate(NAMES):
            alone.publish(directory, name, seed=seed)
            assert upload(http, random_bundle(directory, alone.backbone, name, seed), name).status_code == 201
            answers[name] = alone.http.post(f"/v1/classify?adapter={name}", content=clip).json()
    return answers


def upload(http: httpx.Client, files: Any, name: str) -> httpx.Response:
    parts = {"config": files.config, "weights": files.weights}
    return http.post(f"/v1/adapters/{name}/versions", files=parts)


def same(found: Any, expected: Any) -> bool:
    pairs = list(zip(found["results"], expected["results"], strict=True))
    labels = [[[label["label"] for label in one["labels"]] for one in pair] for pair in pairs]
    scores = [[[label["score"] for label in one["labels"]] for one in pair] for pair in pairs]
    return all(one == other for one, other in labels) and all(np.allclose(*both, atol=1e-4) for both in scores)


def test_answers_are_those_of_one_process(served: Cluster, expected: dict[str, Any], clip: bytes) -> None:
    with served.client("asks") as http:
        for name in NAMES * 2:
            answer = http.post(f"/v1/classify?adapter={name}", content=clip)
            assert answer.status_code == 200, answer.text
            assert same(answer.json(), expected[name])
        several = http.post("/v1/classify", params={"adapter": NAMES[:3]}, files=[("audio", clip), ("audio", clip)])
        assert [one["adapter"] for one in several.json()["results"]] == NAMES[:3] * 2


def test_errors_are_those_of_one_process(served: Cluster, alone: Live, expected: dict[str, Any], clip: bytes) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/v1/classify?adapter=nobody", {"content": clip}),
        ("/v1/classify?adapter=adapter-0", {"content": b"no audio"}),
        ("/v1/embed?adapter=adapter-0&what=1", {"content": clip}),
        ("/v1/adapters/adapter-0/versions", {"files": {"config": b"{}", "weights": b""}}),
    ]
    with served.client() as http:
        for path, body in calls:
            found, other = http.post(path, **body), alone.http.post(path, **body)
            assert (found.status_code, found.json()) == (other.status_code, other.json())
            assert found.headers["content-type"] == "application/problem+json"


def test_keys_hold_at_every_front(served: Cluster, expected: dict[str, Any], clip: bytes) -> None:
    for key, path, status in [
        ("", "/v1/classify?adapter=adapter-0", 401),
        ("wrong", "/v1/classify?adapter=adapter-0", 401),
        ("asks", "/v1/classify?adapter=adapter-0", 200),
        ("asks", "/v1/adapters/adapter-0/pin", 403),
    ]:
        for _ in range(8):  # new connections, to one front or the other
            with served.client(key) as http:
                assert http.post(path, content=clip).status_code == status


def test_the_rate_of_a_key_holds_for_the_fronts_together(served: Cluster, database: str) -> None:
    grant = Grant(frozenset({Scope.READ}), rate=Rate.parse("40/h"))
    _, token = KeyTable(Database(database)).create("", grant)

    def ask() -> httpx.Response:
        with served.client(str(token)) as http:  # a new connection, to one front or the other
            return http.get("/v1/key")

    soon(lambda: ask().status_code == 200, 5)
    statuses: Counter[int] = Counter()
    for _ in range(60):
        statuses[ask().status_code] += 1
        time.sleep(0.3)  # fronts tell each other every so often
    print(dict(statuses))
    assert set(statuses) == {200, 429}
    assert statuses[200] <= 41


def test_an_upload_is_served_by_all_within_two_seconds(
    served: Cluster, alone: Live, expected: dict[str, Any], clip: bytes, tmp_path: Path
) -> None:
    with served.client() as http:
        for seed in range(3):
            name = f"upload-{seed}"
            assert upload(http, random_bundle(tmp_path, alone.backbone, name, seed), name).status_code == 201
            done = time.monotonic()
            statuses = [http.post(f"/v1/classify?adapter={name}", content=clip).status_code for _ in range(12)]
            while statuses[-12:] != [200] * 12:
                statuses.append(http.post(f"/v1/classify?adapter={name}", content=clip).status_code)
                assert time.monotonic() < done + 2.0, Counter(statuses)
            assert http.post(f"/v1/adapters/{name}/pin").json().get("pinned") is True  # loads it on every device
            seconds = time.monotonic() - done
            print(f"served by all fronts, and loaded by all devices, after {seconds:.2f} s; {Counter(statuses)}")
            assert seconds < 2.0
            http.post(f"/v1/adapters/{name}/unpin").raise_for_status()


def test_the_console_is_served(served: Cluster) -> None:
    with served.client("") as http:
        assert "<title>" in http.get("/").text
        assert http.get("/readyz").json() == {"status": "ready"}
        assert "ipet_slots" in http.get("/metrics").text or http.get("/metrics").status_code in (200, 401)


def answering(served: Cluster) -> set[float]:
    """How many slots the devices have together, by each of two fronts; nothing where only one front answers."""
    found: dict[str, float] = {}
    for _ in range(12):
        with served.client() as http:
            lines = dict(line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines() if line[:1] != "#")
        found[lines.get("process_start_time_seconds", "")] = float(lines.get("ipet_slots", 0))
    return set(found.values()) if len(found) == 2 else set()


class Load:
    """Clients that ask and one that uploads, until the end of the `with`."""

    def __init__(self, served: Cluster, alone: Live, expected: dict[str, Any], clip: bytes, directory: Path) -> None:
        self.answers: list[tuple[float, int]] = []  # when, and with what status
        self.wrong: list[str] = []
        self.refusals: Counter[str] = Counter()  # by what they say
        self.published: list[tuple[str, int]] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(served, expected, clip, i)) for i in range(4)]
        self._threads.append(threading.Thread(target=self._upload, args=(served, alone, directory)))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(90)

    def _ask(self, served: Cluster, expected: dict[str, Any], clip: bytes, number: int) -> None:
        chance = random.Random(number)
        with served.client("asks") as http:
            while not self._ended.wait(0.02):
                name = chance.choice(NAMES)
                try:
                    answer = http.post(f"/v1/classify?adapter={name}", content=clip)
                except httpx.HTTPError as error:
                    self.wrong.append(repr(error))
                    continue
                self.answers.append((time.monotonic(), answer.status_code))
                if answer.status_code == 503:
                    self.refusals[answer.text[-160:]] += 1
                if answer.status_code not in (200, 503):
                    self.wrong.append(f"{answer.status_code} {answer.text[:300]}")
                elif answer.status_code == 200 and not same(answer.json(), expected[name]):
                    self.wrong.append(f"another answer of {name}")

    def _upload(self, served: Cluster, alone: Live, directory: Path) -> None:
        seed = 0
        with served.client() as http:
            while not self._ended.wait(0.5):
                seed += 1
                answer = upload(http, random_bundle(directory, alone.backbone, "written", seed), "written")
                if answer.status_code == 201:
                    self.published.append(("written", answer.json()["version"]))
                elif answer.status_code != 503:
                    self.wrong.append(f"upload: {answer.status_code} {answer.text[:300]}")


@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_any_process_may_die_under_load(
    served: Cluster, alone: Live, expected: dict[str, Any], clip: bytes, tmp_path: Path, rounds: int
) -> None:
    chance = random.Random(rounds)
    took: list[float] = []
    used: list[float] = []
    gaps: list[float] = []
    with Load(served, alone, expected, clip, tmp_path) as load:
        for number in range(rounds):
            time.sleep(chance.uniform(0.5, 2.0))
            kind = chance.choice([FRONT, DEVICE]) if rounds > 3 else (FRONT, DEVICE)[number % 2]
            before = {FRONT: served.pids(FRONT), DEVICE: served.pids(DEVICE)}
            victim, killed = chance.choice(before[kind]), time.monotonic()
            os.kill(victim, signal.SIGKILL)

            def is_whole(kind: str = kind, victim: int = victim) -> bool:
                return victim not in served.pids(kind) and answering(served) == {8.0}

            soon(is_whole, 60)
            took.append(time.monotonic() - killed)
            used += [processor_seconds_of(pid) for pid in served.pids(kind) if pid not in before[kind]]
            answered = [at for at, status in load.answers if status == 200 and at > killed - 0.2]
            gaps.append(max(np.diff(answered), default=0.0))
            core, silent = f"{used[-1]:.1f} s of a core", f"silent for {gaps[-1]:.1f} s"
            print(f"{number + 1}: {kind.rpartition(':')[2]}, whole after {took[-1]:.1f} s ({core}), {silent}")
    counts = Counter(status for _, status in load.answers)
    print(f"{rounds} rounds: {dict(counts)}, {len(load.published)} uploads; whole after {np.median(took):.1f} s,")
    print(f"{max(took):.1f} s at most ({max(used):.1f} s of a core); silent for {max(gaps):.1f} s at most")
    print(*load.refusals.most_common(5), sep="\n")
    assert not load.wrong, load.wrong[:5]
    assert max(used) < WHOLE_SECONDS
    assert max(gaps) < SILENT_SECONDS, "others answer meanwhile"
    with served.client() as http:
        known = {one["version"] for one in http.get("/v1/adapters/written").json()["versions"]}
        assert {version for _, version in load.published} <= known
        last = max(version for _, version in load.published)
        assert http.post(f"/v1/classify?adapter=written@{last}", content=clip).status_code == 200


def test_devices_come_as_work_does(served: Cluster, expected: dict[str, Any]) -> None:
    from tests.synthesis import encode, noise

    long, ended = encode(noise(60.0, seed=2)), threading.Event()
    statuses: Counter[int] = Counter()

    def ask() -> None:
        with served.client("asks") as http:
            while not ended.is_set():
                answer = http.post("/v1/classify", params={"adapter": NAMES[:4]}, content=long)
                statuses[answer.status_code] += 1

    assert len(served.pids(DEVICE)) == 2
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    try:
        soon(lambda: len(served.pids(DEVICE)) == 3, 90)
        print(f"a third device after {time.monotonic() - began:.1f} s")
    finally:
        ended.set()
        for thread in threads:
            thread.join(120)
    assert set(statuses) <= {200, 429, 503}
