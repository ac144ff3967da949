"""What was acknowledged is there after kill -9, byte for byte; what was not is wholly there or not at all."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.registry.bundle import read_bundle
from service.registry.store import Registry
from tests.registry.bundles import AST, bundle

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("IPET_CRASH_ROUNDS", "4"))


def publish_until_killed(data_dir: Path, seed: int, seconds: float) -> list[str]:
    """Lines acknowledged by a publisher that is killed after so many seconds of work."""
    command = [sys.executable, "-m", "tests.registry.publisher", str(data_dir), str(seed)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as publisher:
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == "started\n"
        time.sleep(seconds)
        publisher.kill()
        return publisher.stdout.read().splitlines()


@pytest.mark.timeout(0)
def test_kill_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    chance = random.Random(7)
    seeds: dict[tuple[str, int], int] = {}  # (name, version) -> seed of its bytes
    deleted: set[tuple[str, int]] = set()
    for round_number in range(ROUNDS):
        acknowledged = publish_until_killed(tmp_path, round_number, chance.uniform(0.05, 1.2))
        newest: dict[str, int] = {}
        for line in acknowledged:
            match line.split():
                case ["published", name, version, seed]:
                    assert (name, int(version)) not in seeds, "a number was used twice"
                    seeds[name, int(version)] = int(seed)
                    newest[name] = int(version)
                case ["deleted", name, version]:
                    deleted.add((name, int(version)))
        check(Registry(tmp_path, AST), seeds, deleted, newest)
    assert len(seeds) > ROUNDS


def check(
    registry: Registry,
    seeds: dict[tuple[str, int], int],
    deleted: set[tuple[str, int]],
    newest: dict[str, int],
) -> None:
    there = {(record.name, version.version): version for record in registry.records() for version in record.versions}
    for key, seed in seeds.items():
        if key in deleted:
            assert key not in there
        elif key in there:
            files = bundle(key[0], seed=seed)
            assert read_bundle(registry.weights_path(there[key]).parent) == files
        else:  # deleted, and killed before it said so: the version before the newest there is
            assert key[1] == registry.record(key[0]).versions[-1].version - 1
            deleted.add(key)
    for record in registry.records():
        assert record.live == record.versions[-1].version
        assert record.live >= newest.get(record.name, 0)
        for version in record.versions:
            registry.load(version)
    directories = registry.weights_path(next(iter(there.values()))).parents[1] if there else None
    if directories is not None:
        assert {path.name for path in directories.glob("[!.]*")} == {
            version.digest.removeprefix("sha256:") for version in there.values()
        }
