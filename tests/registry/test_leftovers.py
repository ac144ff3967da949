"""What leaves an object store, and when: nothing that was uploaded since, and nothing that is on its way."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Event

import pytest

from service.errors import InvalidRequest
from service.registry.bucket import Bucket
from tests.registry.bundles import bundle
from tests.registry.publishing import publish
from tests.registry.test_bucket import cached, opened, place
from tests.s3 import S3


def test_deleting_takes_the_objects(tmp_path: Path, s3: S3, bucket: str) -> None:
    registry = opened(tmp_path, bucket)
    publish(registry, bundle(seed=1))
    publish(registry, bundle(seed=2))
    registry.delete_version("events", 1)
    assert {key.partition("/")[0] for key in s3.keys(bucket)} == {place(2)} == cached(tmp_path)


def test_orphans_of_a_day_ago_go_at_start(tmp_path: Path, s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(opened(tmp_path, bucket), bundle(seed=1))
    s3.put(f"{bucket}/{'0' * 64}/upload/adapter_model.safetensors", b"half a bundle")
    assert opened(tmp_path, bucket)._retired["sha256:" + "0" * 64] == pytest.approx(time.monotonic() + 86_400, abs=60)
    assert {key.partition("/")[0] for key in s3.keys(bucket)} == {place(1), "0" * 64}
    monkeypatch.setattr("service.registry.bucket.SETTLED", timedelta(0))
    opened(tmp_path, bucket)
    assert {key.partition("/")[0] for key in s3.keys(bucket)} == {place(1)}


def test_what_is_on_its_way_is_left_by_a_sweep(
    tmp_path: Path, s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, send = opened(tmp_path, bucket), Bucket.send

    def swept(objects: Bucket, digest: str, directory: Path) -> None:
        send(objects, digest, directory)
        opened(tmp_path, bucket).close()  # another server starts, to whom these belong to nobody

    monkeypatch.setattr(Bucket, "send", swept)
    version = publish(registry, bundle(seed=1)).version
    registry._objects.local.remove(version.digest)
    registry.load(version)


def test_a_late_deletion_takes_nothing_that_was_uploaded_since_and_stops_nobody(
    tmp_path: Path, s3: S3, bucket: str
) -> None:
    registry, files, late = opened(tmp_path, bucket), bundle("again", seed=1), []
    publish(registry, bundle(seed=2))
    publish(registry, files, "again")
    store, asked, arrives = registry._objects._store, Event(), Event()  # type: ignore[attr-defined]

    class Delaying:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def delete(self, keys: list[str]) -> None:
            asked.set()
            assert arrives.wait(60)
            late.extend(keys)
            store.delete(keys)

    registry._objects._store = Delaying()  # type: ignore[attr-defined]
    with ThreadPoolExecutor(1) as pool:
        deletion = pool.submit(registry.delete_adapter, "again")
        assert asked.wait(30)
        other = opened(tmp_path, bucket)
        began = time.monotonic()
        for server in (registry, other):
            server.set_alias("events", "canary", 1)
        again = publish(other, files, "again").version
        assert time.monotonic() - began < 30
        arrives.set()
        deletion.result()
    assert len(late) == 3
    assert {key.partition("/")[0] for key in s3.keys(bucket)} == {files.digest.removeprefix("sha256:"), place(2)}
    other._objects.local.remove(again.digest)
    other.load(again)


def test_what_another_server_deleted_leaves_no_copy_here(tmp_path: Path, bucket: str) -> None:
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    one, other = (opened(tmp_path / name, bucket, database_url=url) for name in ("one", "other"))
    for seed in (1, 2):
        version = publish(one, bundle(f"of{seed}", seed=seed), f"of{seed}").version
        other._catch_up()
        other.load(version)
    one.delete_adapter("of1")
    other._catch_up()
    assert cached(tmp_path / "other") == {bundle("of2", seed=2).digest.removeprefix("sha256:")}
    other.close()
    one.delete_adapter("of2")
    opened(tmp_path / "other", bucket, database_url=url)
    assert cached(tmp_path / "other") == set()


def test_what_failed_on_the_way_leaves_nothing(tmp_path: Path, s3: S3, bucket: str) -> None:
    registry = opened(tmp_path, bucket)

    def refused(transaction: object, size: int) -> None:
        assert len(s3.keys(bucket)) == 3
        raise InvalidRequest("no")

    files = bundle(seed=1)
    with pytest.raises(InvalidRequest):
        registry.publish("events", files.config, files.weights, files.card, quota=refused)
    registry._catch_up()
    assert s3.keys(bucket) == {}
    assert cached(tmp_path) == set()


def test_removing_many_takes_turns_with_following(
    tmp_path: Path, s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, leftovers = opened(tmp_path, bucket), Bucket.leftovers

    def slowly(objects: Bucket, digest: str) -> object:
        time.sleep(0.3)
        return leftovers(objects, digest)

    for seed in range(4):
        publish(registry, bundle(seed=seed))
    monkeypatch.setattr(Bucket, "leftovers", slowly)
    registry.delete_adapter("events")
    turns = 1
    while s3.keys(bucket):
        registry._catch_up()
        turns += 1
    assert 1 < turns <= 4  # two in half a second, one where they take longer
