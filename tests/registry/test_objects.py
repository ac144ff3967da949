import errno
import os
from collections import namedtuple
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.errors import Internal, StorageFull
from service.registry.adapters import VersionRow
from service.registry.bundle import BundleFiles, read_bundle
from service.registry.objects import Directory
from service.registry.quarantine import HEADROOM_BYTES

FILES = BundleFiles(b"config", b"weights", b"card")
OTHER = BundleFiles(b"config", b"other weights")


@pytest.fixture
def store(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


def put(store: Directory, files: BundleFiles) -> None:
    store.publish(files.digest, store.stage(files))


def holds(store: Directory, files: BundleFiles) -> bool:
    row = VersionRow("events", 1, files.digest, files.config, len(files.weights), datetime.now(UTC), None)
    return store.verify(row, thorough=True) is None


def contents(root: Path) -> list[str]:
    """Files under `root`, but for locks."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != ".lock")


def test_put_and_remove(store: Directory, tmp_path: Path) -> None:
    put(store, FILES)
    assert holds(store, FILES)
    assert not holds(store, OTHER)
    assert read_bundle(store.directory(FILES.digest)) == FILES
    store.remove(FILES.digest)
    store.remove(FILES.digest)
    assert contents(tmp_path) == []


def test_put_replaces_what_is_damaged(store: Directory) -> None:
    put(store, FILES)
    (store.directory(FILES.digest) / "adapter_model.safetensors").write_bytes(b"damaged")
    assert not holds(store, FILES)
    put(store, FILES)
    assert holds(store, FILES)


def test_what_lies_there_is_told_with_its_size(store: Directory) -> None:
    put(store, FILES)
    put(store, OTHER)
    assert store.sizes() == {FILES.digest: len(FILES.weights), OTHER.digest: len(OTHER.weights)}


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, Internal)]
)
def test_a_failing_disk_leaves_nothing_behind(
    store: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error):
        put(store, FILES)
    assert contents(tmp_path) == []


def test_a_nearly_full_disk_is_left_alone(store: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1, 1, HEADROOM_BYTES + 5))
    with pytest.raises(StorageFull, match=r"bytes free, of which [0-9,]+ are kept .* no room for another 17"):
        put(store, FILES)
    assert contents(tmp_path) == []


def test_only_what_the_dead_left_is_swept(store: Directory, tmp_path: Path) -> None:
    other = Directory(tmp_path)  # as another process would have it
    arriving = other.stage(FILES)
    assert store.quarantine.sweep() == 0
    other.publish(FILES.digest, arriving)
    assert read_bundle(store.directory(FILES.digest)) == FILES
    other.stage(OTHER)
    os.close(other.quarantine._lock)  # its process dies
    assert store.quarantine.sweep() == 1
    assert contents(tmp_path / "incoming") == []


def test_who_cannot_look_sweeps_nothing(store: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Directory(tmp_path)
    arriving, really = other.stage(FILES), os.open

    def none_left(path: Path, *flags: int) -> int:
        if Path(path).parent == other.quarantine._own:
            raise OSError(errno.EMFILE, "Too many open files")
        return really(path, *flags)

    monkeypatch.setattr(os, "open", none_left)
    assert store.quarantine.sweep() == 0
    other.publish(FILES.digest, arriving)
    assert holds(store, FILES)


def test_objects_know_their_catalogue(store: Directory, tmp_path: Path) -> None:
    put(store, FILES)
    store.belong_to("one")
    Directory(tmp_path).belong_to("one")
    with pytest.raises(Internal, match="belong to the catalogue one, the database given is two"):
        Directory(tmp_path).belong_to("two")
    assert store.sizes().keys() == {FILES.digest}
