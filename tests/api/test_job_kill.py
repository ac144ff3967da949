"""kill -9 at random moments while jobs are taken in and run.

What was answered is a job after a restart; each job ends with what it would have said without a break: no event is lost
or doubled, nobody is enrolled twice.
"""

import os
import random
import signal
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.model.backbone import Backbone
from service.model.spec import TaskType
from tests.api.desk import ANN, SPEECH
from tests.api.test_kill import nursery
from tests.bundles import random_bundle
from tests.synthesis import encode, noise, tone

LONGEST_LIFE = 1.5  # seconds of a server that can answer
LEAST_JOBS = 2  # that are always under way
QUERY = "adapter=alpha&adapter=beta&hop=0.1&threshold=0.169&merge_gap=0"


def recording(seed: int) -> bytes:
    chance = np.random.default_rng(seed)
    pieces = [
        noise(1.3, level=0.001 * 4.0 ** chance.integers(5), seed=n) + tone(1.3, 100.0 * 2.0 ** chance.integers(6))
        for n in range(12)
    ]
    return encode(np.concatenate(pieces) / 2, container="flac")


class World:
    """What was asked of a service, and what it has to answer."""

    def __init__(self) -> None:
        self.recordings = [recording(seed) for seed in range(2)]
        self.expected: list[list[Any]] = []
        self.open: dict[str, int] = {}  # jobs of events, by the recording
        self.enrolments: dict[str, str] = {}  # jobs, by the speaker
        self.done = 0

    def prepare(self, http: httpx.Client, files: list[Any]) -> None:
        for bundle, name in files:
            parts = {"config": bundle.config, "weights": bundle.weights}
            assert http.post(f"/v1/adapters/{name}/versions", files=parts).status_code == 201
        for content in self.recordings:
            told = http.post(f"/v1/events?{QUERY}", content=content).json()["events"]
            assert len(told) > 3
            self.expected.append(told)

    def ask(self, http: httpx.Client, chance: random.Random) -> None:
        """Sees to it that jobs are under way."""
        while len(self.open) < LEAST_JOBS:
            number = chance.randrange(len(self.recordings))
            answer = http.post(f"/v1/jobs?{QUERY}", content=self.recordings[number])
            assert answer.status_code == 202, answer.text
            self.open[answer.json()["id"]] = number
        if not self.enrolments:
            speaker = f"speaker-{self.done}-{chance.randrange(10**6)}"
            people = [(f"{speaker}-{n}", content) for n in range(5) for content in ANN]
            answer = http.post("/v1/speakers/jobs?adapter=voice", files=people)
            self.enrolments[answer.json()["id"]] = speaker

    def look(self, http: httpx.Client) -> None:
        """Checks every job that was answered, and what those say that have ended."""
        for job, number in list(self.open.items()):
            told = http.get(f"/v1/jobs/{job}")
            assert told.status_code == 200, told.text
            assert told.json()["status"] in ("queued", "running", "done"), told.text
            if told.json()["status"] == "done":
                assert http.get(f"/v1/jobs/{job}/result").json()["events"] == self.expected[number]
                del self.open[job]
                self.done += 1
        for job, speaker in list(self.enrolments.items()):
            if http.get(f"/v1/jobs/{job}").json()["status"] == "done":
                rows = http.get(f"/v1/jobs/{job}/result").json()["speakers"]
                assert [row["result"] for row in rows] == ["enrolled"] * 5
                for n in range(5):
                    standing = http.get(f"/v1/speakers/{speaker}-{n}").json()["adapters"][0]
                    assert [one["id"] for one in standing["enrolments"]] == [1, 2]
                del self.enrolments[job]
                self.done += 1


@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.timeout(3600)
def test_kill_at_any_moment(rounds: int, tiny_ast: Backbone, tiny_ast_dir: Path, tmp_path: Path) -> None:
    chance, world = random.Random(rounds), World()
    files = [(random_bundle(tmp_path, tiny_ast.spec, name, seed), name) for seed, name in enumerate(("alpha", "beta"))]
    files.append((random_bundle(tmp_path, tiny_ast.spec, "voice", task=TaskType.VERIFICATION, **SPEECH), "voice"))
    with ExitStack() as opened:
        start = opened.enter_context(nursery(tiny_ast_dir, tmp_path / "data"))
        http = opened.enter_context(httpx.Client(timeout=60, verify=False))
        for i in range(rounds + 1):
            url, pid, wait_for_death = start()
            http.base_url = httpx.URL(url)
            if not i:
                world.prepare(http, files)
            until = time.monotonic() + (300.0 if i == rounds else chance.uniform(0.0, LONGEST_LIFE))
            with suppress(httpx.HTTPError):
                while time.monotonic() < until:
                    if i < rounds:
                        world.ask(http, chance)
                    world.look(http)
                    if i == rounds and not world.open and not world.enrolments:
                        break
                    time.sleep(0.02)
            os.kill(pid, signal.SIGKILL)
            wait_for_death()
    assert not world.open
    assert not world.enrolments
    print(f"\n{rounds} kills, {world.done} jobs done, each as without a break")
    assert world.done >= 3
    left = [path for path in (tmp_path / "data" / "jobs").iterdir() if path.name[0] != "."]
    assert all([one.name for one in path.iterdir()] == ["result"] for path in left)
