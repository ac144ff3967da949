"""The copies of an object store's bundles on this machine: one bound for all processes on one data directory."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from service.backup.transfer import back_up
from service.errors import AdapterFailed, RegistryUnavailable, StorageFull
from service.registry.bundle import WEIGHTS_FILE
from service.registry.quarantine import HEADROOM_BYTES
from tests.registry.bundles import bundle
from tests.registry.publishing import publish
from tests.registry.test_bucket import cached, opened, place, weights
from tests.s3 import S3

ROOT = Path(__file__).parents[2]
VERSIONS, LOADS = 6, 25
OF_ONE = sum(map(len, (bundle().config, bundle().weights, bundle().card or b"")))
MOST = 3 * OF_ONE + 100
SERVER = f"""
import random, sys, time, torch
from pathlib import Path
from service.registry.store import Registry
from tests.registry.bundles import AST, tensors

registry = Registry(Path(sys.argv[1]), AST, objects_url=sys.argv[2], objects_cache_bytes={MOST})
order = random.Random(sys.argv[3])
(Path(sys.argv[1]) / sys.argv[3]).touch()
until = time.monotonic() + 120
while not all((Path(sys.argv[1]) / name).exists() for name in ("one", "other")):
    assert time.monotonic() < until
    time.sleep(0.01)
for _ in range({LOADS}):
    version = order.choice(registry.record("events").versions)
    expected, read = tensors(version.manifest, seed=version.version), registry.load(version).to_tensors()
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in expected)
    registry.whole_weights(version).close()
    assert registry.card_bytes(version) == b"# card\\n"
    there = (Path(sys.argv[1]) / "cache" / "objects").iterdir()
    print(*sorted(path.name for path in there if not path.name.startswith(".")))
"""


def held(data_dir: Path) -> int:
    """Bytes of all copies, at a moment when none takes its place."""
    with (data_dir / "cache" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in (data_dir / "cache" / "objects").glob("[!.]*/*"))


def test_two_processes_keep_one_bound_and_read_what_was_uploaded(tmp_path: Path, bucket: str) -> None:
    registry = opened(tmp_path, bucket, objects_cache_bytes=MOST)
    for seed in range(1, VERSIONS + 1):
        publish(registry, bundle(seed=seed))
    commands = [[sys.executable, "-c", SERVER, str(tmp_path), bucket, name] for name in ("one", "other")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    servers = [subprocess.Popen(command, cwd=ROOT, text=True, **pipes) for command in commands]
    most = 0
    while any(server.poll() is None for server in servers):
        most = max(most, held(tmp_path))
        time.sleep(0.005)
    told = [server.communicate() for server in servers]
    assert [(errors, server.returncode) for (_, errors), server in zip(told, servers, strict=True)] == [("", 0)] * 2
    seen = {line for lines, _ in told for line in lines.splitlines()}  # after each load
    assert most <= MOST
    assert len(seen) > VERSIONS  # what lay there came and went


def test_what_another_process_lets_go_between_look_and_open_is_brought_anew(tmp_path: Path, bucket: str) -> None:
    registry, other = opened(tmp_path, bucket), opened(tmp_path, bucket)
    files, places = bundle(seed=1), []
    digest = publish(registry, files).version.digest

    def read(directory: Path) -> bytes:
        places.append(directory)
        other._objects.local.remove(digest)
        return (directory / WEIGHTS_FILE).read_bytes()

    assert registry._objects.use(digest, read) == files.weights
    assert len(places) == 2  # the second is out of the other's reach
    assert cached(tmp_path) == {place(1)}


def test_a_bundle_larger_than_the_bound_lies_there_alone(tmp_path: Path, bucket: str) -> None:
    registry = opened(tmp_path, bucket, objects_cache_bytes=OF_ONE - 1)
    versions = [publish(registry, bundle(seed=seed)).version for seed in (1, 2)]
    for version in versions:
        registry.load(version)
        assert cached(tmp_path) == {version.digest.removeprefix("sha256:")}


def test_what_is_not_what_was_uploaded_takes_no_place(tmp_path: Path, s3: S3, bucket: str) -> None:
    registry = opened(tmp_path, bucket)
    version = publish(registry, bundle(seed=1)).version
    registry._objects.local.remove(version.digest)
    s3.put(weights(s3, bucket, 1), b"damaged")
    with pytest.raises(AdapterFailed, match="damaged"):
        registry.load(version)
    assert cached(tmp_path) == set()
    assert not list((tmp_path / "cache" / "incoming").glob("*/[!.]*"))  # nor is anything left on its way


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_a_backup_has_what_was_uploaded_whatever_lies_here(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, files = opened(tmp_path / "data", bucket), bundle(seed=1)
    path = registry.weights_path(publish(registry, files).version)
    monkeypatch.setattr(registry._objects, "verify", lambda *_, **__: None)  # of what lies in the store
    for number, spoil in enumerate((lambda: path.write_bytes(flipped(files.weights)), path.unlink)):
        spoil()
        out = tmp_path / str(number)
        assert back_up(registry._catalogue, registry._objects, out, lambda *_: None).versions == 1
        assert (out / "objects" / place(1) / WEIGHTS_FILE).read_bytes() == files.weights


def test_a_copy_that_could_not_be_read_for_now_stays(
    tmp_path: Path, s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = opened(tmp_path, bucket)
    version = publish(registry, bundle(seed=1)).version
    s3.stop()

    def fails(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fails)
        with pytest.raises(RegistryUnavailable):
            registry.load(version)
    registry.load(version)


def full(data_dir: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """A disk with room for so many bytes, of copies and what becomes one."""
    usage = namedtuple("usage", "total used free")

    def look(_: object) -> object:
        there = (path for path in (data_dir / "cache").rglob("[!.]*") if path.is_file())
        return usage(1, 1, HEADROOM_BYTES + room - sum(path.stat().st_size for path in there))

    monkeypatch.setattr("shutil.disk_usage", look)


def test_no_copy_goes_where_all_would_be_too_little(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = opened(tmp_path, bucket)
    versions = [publish(registry, bundle(seed=seed)).version for seed in range(3)]
    registry._objects.local.remove(versions[0].digest)
    full(tmp_path, monkeypatch, OF_ONE - 100)
    with pytest.raises(StorageFull):
        registry.load(versions[0])
    assert cached(tmp_path) == {place(1), place(2)}


def test_copies_make_room_for_an_upload(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = opened(tmp_path, bucket)
    for seed in range(3):
        publish(registry, bundle(seed=seed))
    full(tmp_path, monkeypatch, 3 * OF_ONE)
    assert publish(registry, bundle(seed=3)).created
    assert place(3) in cached(tmp_path)


def test_a_download_goes_on_without_its_copy(tmp_path: Path, bucket: str) -> None:
    registry, other, files = opened(tmp_path, bucket), opened(tmp_path, bucket), bundle(seed=1)
    version = publish(registry, files).version
    with registry.whole_weights(version) as file:
        other._objects.local.remove(version.digest)
        with open(f"/dev/fd/{file.fileno()}", "rb") as again:
            assert again.read() == files.weights


def test_a_card_is_not_missing_where_its_copy_is_going(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, other, files = opened(tmp_path, bucket), opened(tmp_path, bucket), bundle(seed=1)
    version = publish(registry, files).version
    look = os.listdir

    def half_gone(directory: Path) -> list[str]:
        monkeypatch.setattr(os, "listdir", look)
        other._objects.local.remove(version.digest)
        return [WEIGHTS_FILE]

    monkeypatch.setattr(os, "listdir", half_gone)
    assert registry.card_bytes(version) == files.card


def test_what_is_deleted_while_it_is_brought_does_not_stay(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = opened(tmp_path, bucket)
    version = publish(registry, bundle(seed=1)).version
    registry._objects.local.remove(version.digest)

    def read(directory: Path, _: object) -> bytes:
        content = (directory / WEIGHTS_FILE).read_bytes()
        registry.delete_adapter("events")
        return content

    monkeypatch.setattr("service.registry.view.read_verified", read)
    registry.load(version)
    registry._retired = dict.fromkeys(registry._retired, 0.0)
    registry.catch_up()
    assert cached(tmp_path) == set()
