"""kill -9 at random moments under uploads, alias moves, deletions and inference, over real HTTP.

What was answered is there after a restart, byte for byte; what was not is wholly there or not at all; no answer ever
comes from a mixture of two versions.
"""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.audio.decode import DecodeLimits, decode
from service.database import Database
from service.engine.engine import answer
from service.model.adapter import AdapterWeights
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.registry.bundle import WEIGHTS_FILE, BundleFiles, read_weights
from service.registry.catalogue import Catalogue
from service.registry.manifest import parse_manifest
from service.registry.store import Registry
from tests.bundles import random_bundle
from tests.s3 import S3

ROOT = Path(__file__).parents[2]
NAMES = ("events", "sounds")
LONGEST_ROUND = 1.0  # seconds between readiness and the kill


@dataclass
class Known:
    """What the clients know of one adapter.

    Args:
        seeds: version -> seed of the bytes, of uploads that were answered.
        trying: seed of the upload that is under way.
        live: what `live` was last answered to be; moving: what it is being set to.
    """

    seeds: dict[int, int] = field(default_factory=dict)
    trying: int | None = None
    live: int | None = None
    moving: int | None = None
    deleted: set[int] = field(default_factory=set)
    deleting: int | None = None


@dataclass
class World:
    """Everything that was done, over all rounds."""

    directory: Path
    backbone: Backbone
    clip: bytes
    known: dict[str, Known] = field(default_factory=lambda: {name: Known() for name in NAMES})
    next_seed: int = 0
    answers: int = 0
    faults: list[str] = field(default_factory=list)
    expected: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def bundle(self, name: str, seed: int) -> BundleFiles:
        return random_bundle(self.directory, self.backbone.spec, name, seed)

    def scores(self, files: BundleFiles) -> NDArray[np.float32]:
        """What exactly this version says of the clip, computed here."""
        if files.digest not in self.expected:
            manifest = parse_manifest(files.config)
            weights = AdapterWeights.from_tensors(
                manifest.adapter_spec(), read_weights(files.weights, manifest, self.backbone.spec)
            )
            samples = torch.from_numpy(decode(self.clip, DecodeLimits()).samples)
            windows = self.backbone.features.windows(samples, manifest.input_spec())
            with torch.inference_mode():
                bank = Bank.of(self.backbone, [weights])
                outputs = self.backbone.answer(windows.inputs, bank, [1] * len(windows.inputs))
            self.expected[files.digest] = answer(manifest, outputs.numpy()).mean(axis=0)
        return self.expected[files.digest]

    @property
    def versions(self) -> int:
        """How many uploads are known to be committed."""
        return sum(len(known.seeds) for known in self.known.values())

    # What the clients do, each in a thread of its own, until the server is killed

    def upload(self, http: httpx.Client, name: str) -> None:
        known = self.known[name]
        self.next_seed += 1
        known.trying = seed = self.next_seed
        files = self.bundle(name, seed)
        parts = {"config": files.config, "weights": files.weights}
        done = http.post(f"/v1/adapters/{name}/versions?activate=false", files=parts)
        assert done.status_code == 201, done.text
        version = done.json()["version"]
        assert version not in known.seeds, "a number was used twice"
        known.seeds[version] = seed
        known.trying = None
        old = version - 6
        if seed % 3 == 0 and old in known.seeds and old not in (known.live, known.moving, known.live or 1):
            known.deleting = old
            gone = http.delete(f"/v1/adapters/{name}/versions/{old}")
            if gone.status_code == 204:
                known.deleted.add(old)
            known.deleting = None

    def move(self, http: httpx.Client, name: str) -> None:
        known = self.known[name]
        if not known.seeds:
            return
        known.moving = max(known.seeds)
        done = http.put(f"/v1/adapters/{name}/aliases/live", json={"version": known.moving})
        assert done.status_code == 200, done.text
        known.live, known.moving = known.moving, None

    def ask(self, http: httpx.Client, name: str) -> None:
        unknown = not self.known[name].seeds  # before asking: the first upload may be answered meanwhile
        done = http.post(f"/v1/classify?adapter={name}&top_k=0", content=self.clip)
        if done.status_code == 404 and unknown:
            return
        assert done.status_code == 200, done.text
        self.check_answer(http, name, done.json()["results"][0])

    def check_answer(self, http: httpx.Client, name: str, result: dict[str, Any]) -> None:
        """The answer's scores are those of the version that it names, and of no other."""
        version = result["version"]
        seed = self.known[name].seeds.get(version, self.known[name].trying)
        assert seed is not None, f"{name}@{version} answers, and nobody uploaded it"
        files = self.bundle(name, seed)
        labels = parse_manifest(files.config).labels or ()
        scores = {one["label"]: one["score"] for one in result["labels"]}
        got = np.array([scores[label] for label in labels])
        assert np.abs(got - self.scores(files)).max() < 1e-4, f"{name}@{version} does not answer as itself"
        self.answers += 1

    def check_restart(self, http: httpx.Client) -> None:
        """The server has exactly what it answered, and whatever else it has is whole."""
        for name, known in self.known.items():
            found = http.get(f"/v1/adapters/{name}")
            if found.status_code == 404:
                assert not known.seeds, f"{name} is gone"
                continue
            adapter = found.json()
            there = {one["version"]: one for one in adapter["versions"]}
            if known.deleting is not None and known.deleting not in there:
                known.deleted.add(known.deleting)
            for version in there.keys() - known.seeds.keys():  # an upload whose answer never came
                assert known.trying is not None, f"{name}@{version} comes from nowhere"
                known.seeds[version] = known.trying
            assert there.keys() == known.seeds.keys() - known.deleted
            for version in sorted(there)[-4:]:
                files = self.bundle(name, known.seeds[version])
                assert there[version]["digest"] == files.digest
                assert there[version]["state"] == "registered", there[version]
                assert http.get(f"/v1/adapters/{name}/versions/{version}/weights").content == files.weights
                assert http.get(f"/v1/adapters/{name}/versions/{version}/config").content == files.config
            assert adapter["live"] in {known.live or 1, known.moving or known.live or 1}
            known.live, known.trying, known.moving, known.deleting = adapter["live"], None, None, None
            self.ask(http, name)


@contextmanager
def nursery(
    backbone: Path, data_dir: Path, **variables: str
) -> Iterator[Callable[[], tuple[str, int, Callable[[], None]]]]:
    """Starts servers: each with its URL, its process and a way to wait for its death."""
    command = [sys.executable, "-m", "tests.api.nursery", str(backbone), str(data_dir)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | variables, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = process.stdout

        def wait() -> None:
            assert lines.readline() == "dead\n"

        def start() -> tuple[str, int, Callable[[], None]]:
            print("start", file=process.stdin, flush=True)
            _, url, pid = lines.readline().split()
            return url, int(pid), wait

        yield start
        process.stdin.close()


def live_through(world: World, clients: Sequence[httpx.Client], pid: int, seconds: float, patient: bool) -> None:
    """Lets clients loose on a server and kills it, where `patient` not before it has answered an upload."""
    killed = threading.Event()
    before = world.versions

    def repeat(http: httpx.Client, action: Callable[[httpx.Client, str], None], name: str) -> None:
        try:
            while not killed.is_set():
                action(http, name)
        except httpx.HTTPError:
            if not killed.is_set():
                world.faults.append(f"{action.__name__}: the server broke off by itself")
        except AssertionError as error:
            world.faults.append(f"{action.__name__}: {error}")

    tasks = [(action, name) for action in (world.upload, world.move, world.ask) for name in NAMES]
    threads = [threading.Thread(target=repeat, args=(http, *task)) for http, task in zip(clients, tasks, strict=True)]
    for thread in threads:
        thread.start()
    while patient and world.versions == before and not world.faults:  # a client's timeout is a fault too
        killed.wait(0.01)
    killed.wait(seconds)
    killed.set()
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("rounds", [3, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.timeout(3600)
def test_kill_at_any_moment(rounds: int, tiny_ast: Backbone, tiny_ast_dir: Path, tmp_path: Path, clip: bytes) -> None:
    world = World(tmp_path / "bundles", tiny_ast, clip)
    kill_again_and_again(world, rounds, tiny_ast_dir, tmp_path / "data")


@pytest.mark.parametrize("rounds", [2, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.timeout(3600)
def test_kill_between_store_and_catalogue(
    rounds: int,
    tiny_ast: Backbone,
    tiny_ast_dir: Path,
    tmp_path: Path,
    clip: bytes,
    postgres_url: str,
    s3: S3,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, catalogue = World(tmp_path / "bundles", tiny_ast, clip), Catalogue(Database(postgres_url))
    halves = 0

    def count() -> None:
        """The rounds that ended with files in the store of which the catalogue never had anything."""
        nonlocal halves
        keys = [key.split("/") for key in s3.keys(bucket)]
        there = {f"sha256:{digest}" for digest, _, _ in keys}
        with catalogue.read() as transaction:
            known = {row.digest for rows in transaction.adapters() for row in rows.versions}
            halves += transaction.seen(list(there)).keys() != there
        assert known <= {f"sha256:{digest}" for digest, _, name in keys if name == WEIGHTS_FILE}, (
            "a version lacks its weights"
        )

    places = {"IPET_DATABASE_URL": postgres_url, "IPET_OBJECTS": bucket}
    kill_again_and_again(world, rounds, tiny_ast_dir, tmp_path / "data", count, **places)
    print(f"{halves} of the rounds ended between store and catalogue")
    monkeypatch.setattr("service.registry.bucket.SETTLED", timedelta(0))
    last = Registry(tmp_path / "last", tiny_ast.spec, database_url=postgres_url, objects_url=bucket)
    for _ in range(rounds + 20):  # a second each at most
        last.catch_up()
    last.close()
    swept, halves = halves, 0
    count()
    assert not halves, "what is nobody's goes at a start"
    assert swept or rounds < 10


def kill_again_and_again(
    world: World,
    rounds: int,
    backbone: Path,
    data_dir: Path,
    after_each: Callable[[], None] = lambda: None,
    **variables: str,
) -> None:
    chance = random.Random(rounds)
    with ExitStack() as opened:
        start = opened.enter_context(nursery(backbone, data_dir, **variables))
        clients = [opened.enter_context(httpx.Client(timeout=60, verify=False)) for _ in range(3 * len(NAMES))]
        for i in range(rounds + 1):
            url, pid, wait_for_death = start()
            for client in clients:
                client.base_url = httpx.URL(url)
            world.check_restart(clients[0])
            live_through(world, clients, pid, chance.uniform(0.0, LONGEST_ROUND), patient=i % 2 == 0)
            wait_for_death()
            assert not world.faults, world.faults[0]
            after_each()
    deletions = sum(len(known.deleted) for known in world.known.values())
    print(f"\n{rounds + 1} kills, {world.versions} versions, {deletions} deleted, {world.answers} answers checked")
    assert world.versions > rounds // 2  # every other server died with an upload answered
    assert world.answers >= rounds
