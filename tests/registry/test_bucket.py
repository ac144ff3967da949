"""Bundles in an object store, on a real server of S3's protocol: what is kept here is checked, what is lost is told."""

import json
import os
from collections import namedtuple
from pathlib import Path

import pytest

from service.errors import AdapterFailed, Internal, InvalidRequest, RegistryUnavailable, ServiceError
from service.registry.bucket import Bucket, open_objects
from service.registry.cache import Cache
from service.registry.objects import Directory
from service.registry.quarantine import HEADROOM_BYTES
from service.registry.store import Registry
from service.settings import Settings
from tests.registry.bundles import AST, bundle
from tests.registry.publishing import publish
from tests.s3 import S3

FILES = ("README.md", "adapter_config.json", "adapter_model.safetensors")


def opened(data_dir: Path, bucket: str, **more: object) -> Registry:
    return Registry(data_dir, AST, objects_url=bucket, **more)  # type: ignore[arg-type]


def place(seed: int) -> str:
    return bundle(seed=seed).digest.removeprefix("sha256:")


def keys(s3: S3, bucket: str) -> dict[str, int]:
    """`<digest>/<file>` -> bytes, of one upload each."""
    there = {(key.split("/")[0], key.split("/")[2]): size for key, size in s3.keys(bucket).items()}
    assert len(there) == len(s3.keys(bucket))
    return {"/".join(key): size for key, size in there.items()}


def weights(s3: S3, bucket: str, seed: int) -> str:
    """The URL of a bundle's weights."""
    (key,) = (key for key in s3.keys(bucket) if key.startswith(place(seed)) and key.endswith("safetensors"))
    return f"{bucket}/{key}"


def cached(data_dir: Path) -> set[str]:
    return {path.name for path in (data_dir / "cache" / "objects").iterdir() if not path.name.startswith(".")}


def test_an_upload_lies_in_the_store_byte_for_byte_and_comes_from_there(tmp_path: Path, s3: S3, bucket: str) -> None:
    files = bundle(seed=1)
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    version = publish(opened(tmp_path / "one", bucket, database_url=url), files).version
    sizes = [len(files.card or b""), len(files.config), len(files.weights)]
    assert keys(s3, bucket) == {f"{place(1)}/{name}": size for name, size in zip(FILES, sizes, strict=True)}
    other = opened(tmp_path / "other", bucket, database_url=url)  # of another machine
    assert cached(tmp_path / "other") == set()
    assert other.problem(version) is None
    assert other.weights_path(other.resolve("events")).read_bytes() == files.weights
    assert other.card_bytes(version) == files.card
    assert cached(tmp_path / "other") == {place(1)}


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_copy_here_is_brought_anew(tmp_path: Path, bucket: str, damage: str) -> None:
    registry, files = opened(tmp_path, bucket), bundle(seed=1)
    version = publish(registry, files).version
    path = registry.weights_path(version)
    for read in (registry.load, lambda one: registry.whole_weights(one).close()):
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(files.weights[:-1] + bytes([files.weights[-1] ^ 1]) * (damage == "flip"))
        assert registry.problem(version) is None  # the version is well
        read(version)
        assert path.read_bytes() == files.weights
        assert registry.problem(version) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_object_fails_that_version_only_and_an_upload_repairs_it(
    tmp_path: Path, s3: S3, bucket: str, damage: str
) -> None:
    before, files = opened(tmp_path, bucket), bundle(seed=1)
    version, other = publish(before, files).version, publish(before, bundle(seed=2)).version
    key = weights(s3, bucket, 1)
    if damage == "missing":
        s3.delete(key)
    else:
        s3.put(key, files.weights[:-1] + bytes([files.weights[-1] ^ 1]) * (damage == "flip"))
    before.load(version)  # what lies here is whole
    before._objects.local.remove(version.digest)
    registry = opened(tmp_path, bucket)
    assert (registry.problem(version) is None) == (damage == "flip")  # sizes are looked at when it starts
    with pytest.raises(AdapterFailed, match=r"events@1: .*(damaged|lacks files)"):
        registry.load(version)
    assert registry.problem(version) is not None
    assert place(1) not in cached(tmp_path)
    registry.load(other)
    assert not publish(registry, files).created
    assert registry.problem(version) is None
    registry._objects.local.remove(version.digest)
    registry.load(version)


def test_copies_here_take_no_more_than_they_may(tmp_path: Path, bucket: str) -> None:
    of_one = sum(map(len, (bundle().config, bundle().weights, bundle().card or b"")))
    registry = opened(tmp_path, bucket, objects_cache_bytes=3 * of_one + 100)
    versions = [publish(registry, bundle(seed=seed)).version for seed in range(3)]
    for number, seed in enumerate((1, 2, 0)):  # used last: 0
        os.utime(registry._objects.local.directory(bundle(seed=seed).digest), (number, number))
    versions.append(publish(registry, bundle(seed=3)).version)
    assert cached(tmp_path) == {place(0), place(3)}  # 1 and 2 went, for some room beyond the one
    for version in versions:
        registry.load(version)
        assert len(cached(tmp_path)) <= 3


def test_copies_here_make_room_on_a_full_disk(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of_one = sum(map(len, (bundle().config, bundle().weights, bundle().card or b"")))
    registry = opened(tmp_path, bucket)
    first, second, third = (publish(registry, bundle(seed=seed)).version for seed in range(3))
    registry._objects.local.remove(first.digest)
    os.utime(registry._objects.local.directory(third.digest), (1, 1))
    usage = namedtuple("usage", "total used free")

    def full(_: object) -> object:  # but for what is let go
        return usage(1, 1, HEADROOM_BYTES + (3 - len(cached(tmp_path))) * of_one - of_one)

    monkeypatch.setattr("shutil.disk_usage", full)
    registry.load(first)
    assert cached(tmp_path) == {place(0), place(1)}
    registry.load(second)


def test_a_card_that_cannot_be_read_is_not_one_that_never_came(tmp_path: Path, s3: S3, bucket: str) -> None:
    registry = opened(tmp_path, bucket)
    version = publish(registry, bundle(seed=1)).version
    card = registry._objects.local.directory(version.digest) / "README.md"
    card.unlink()
    card.mkdir()
    with pytest.raises(AdapterFailed, match=r"events@1: README.md cannot be read: Is a directory"):
        registry.card_bytes(version)
    registry.load(version)
    registry._objects.local.remove(version.digest)
    s3.delete(weights(s3, bucket, 1))
    with pytest.raises(AdapterFailed, match=r"events@1: .* lacks files"):
        registry.card_bytes(version)


def test_a_card_goes_with_its_upload(tmp_path: Path, s3: S3, bucket: str) -> None:
    registry, files = opened(tmp_path, bucket), bundle(seed=1)
    version = publish(registry, files).version
    assert registry.card_bytes(version) == files.card
    s3.put(weights(s3, bucket, 1), b"damaged")
    assert not registry.publish("events", files.config, files.weights).created  # repairs it, without a card
    registry._objects.local.remove(version.digest)
    registry.load(version)
    assert registry.card_bytes(version) is None


def test_what_a_data_directory_held_is_read_as_it_lay_there(tmp_path: Path, s3: S3, bucket: str) -> None:
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    before = Registry(tmp_path / "before", AST, database_url=url)
    version = publish(before, bundle(seed=1)).version
    for path in before._objects.directory(version.digest).iterdir():
        s3.put(f"{bucket}/{place(1)}/{path.name}", path.read_bytes())
    registry = opened(tmp_path / "after", bucket, database_url=url)
    assert registry.problem(version) is None
    registry.load(version)


def test_without_the_store_what_lies_here_is_served(
    tmp_path: Path, s3: S3, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry = opened(tmp_path, bucket)
    here, there = publish(registry, bundle(seed=1)).version, publish(registry, bundle(seed=2)).version
    registry._objects.local.remove(there.digest)
    s3.stop()
    registry._watching.once()
    assert ": the object store cannot be reached; " in (registry.degraded or "")
    assert "://" not in (registry.degraded or "")
    assert f"the object store {bucket} cannot be used to read" in caplog.text
    registry.load(here)
    for call in (lambda: registry.load(there), lambda: publish(registry, bundle(seed=3))):
        with pytest.raises(RegistryUnavailable, match="error sending request") as caught:
            call()
        assert caught.value.retry_after
    registry.delete_version("events", 1)  # its objects go when the store is back
    s3.start()
    registry._watching.once()
    assert registry.degraded is None
    registry._retired = dict.fromkeys(registry._retired, 0.0)
    registry._catch_up()
    assert {key.partition("/")[0] for key in s3.keys(bucket)} == {place(2)}
    registry.load(there)
    assert publish(registry, bundle(seed=3)).version.version == 3


@pytest.mark.parametrize(
    ("allowed", "told"),
    [
        ([], "cannot be used to list: Access Denied"),
        (["s3:ListBucket"], "cannot be used to write: Access Denied"),
        (["s3:ListBucket", "s3:PutObject"], "cannot be used to delete: .*AccessDenied"),
        (["s3:ListBucket", "s3:PutObject", "s3:DeleteObject"], "cannot be used to read: Access Denied"),
    ],
)
def test_what_somebody_may_not_is_told_at_start(
    tmp_path: Path, s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch, allowed: list[str], told: str
) -> None:
    with s3.allowing("iam:GetUser", *allowed) as keys:
        for name, value in keys.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RegistryUnavailable, match=told):
            opened(tmp_path, bucket)


def test_places_that_are_none_are_refused(tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(url: str) -> str:
        with pytest.raises(ServiceError) as caught:
            opened(tmp_path, url)
        return caught.value.detail

    assert "s3://nowhere cannot be used to list: The specified bucket does not exist (NoSuchBucket)" in fault(
        "s3://nowhere"
    )
    assert "s3://bucket/prefix" in fault("ftp://bucket/prefix")
    assert "s3://bucket/prefix" in fault("s3://")
    assert "s3://bucket/prefix" in fault("s3:/bucket")
    assert "Account must be specified" in fault("az://container/prefix")
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    assert "pip install 'ipet-serve[objects]'" in fault("s3://bucket/prefix")


def test_objects_know_their_catalogue(tmp_path: Path, bucket: str) -> None:
    opened(tmp_path / "one", bucket)
    with pytest.raises(Internal, match=r"belong to the catalogue .*--objects"):
        opened(tmp_path / "other", bucket)


def test_of_two_databases_that_claim_a_bucket_at_once_one_gets_it(tmp_path: Path, bucket: str) -> None:
    first, late = (Bucket(bucket, Cache(tmp_path / name, 2**20)) for name in ("first", "late"))
    store, looks = late._store, []

    class Looking:
        """The store as the late one has it, which looks just before the first one writes."""

        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def get(self, key: str) -> object:
            looks.append(key)
            if len(looks) == 1:
                first.belong_to("one")
                raise FileNotFoundError(key)
            return store.get(key)

    late._store = Looking()
    with pytest.raises(Internal, match="belong to the catalogue one, the database given is two"):
        late.belong_to("two")
    first.belong_to("one")


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:hush@bucket/prefix",
        "s3://AKIAKEY:hu/sh@bucket",
        "s3://hush@bucket",
        "gs://bucket/prefix?secret_access_key=hush",
        "az://container/prefix#hush",
        "https://AKIAKEY:hush@host/bucket",
    ],
)
def test_a_key_in_the_url_is_refused_and_told_to_nobody(
    tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidRequest, match="credentials come from the environment") as caught:
        opened(tmp_path, url)
    told = f"{caught.value.detail} {caplog.text} {Settings(objects=url)!r}"
    assert not any(part in told for part in ("hush", "hu/sh", "AKIAKEY"))


def test_a_directory_is_a_place_too(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "data", AST, objects_url=str(tmp_path / "shared"))
    publish(registry, bundle(seed=1))
    assert {path.name for path in (tmp_path / "shared" / "objects" / place(1)).iterdir()} == set(FILES)
    assert isinstance(open_objects(tmp_path / "data"), Directory)
    assert json.loads((tmp_path / "shared" / "objects" / place(1) / FILES[1]).read_bytes())["name"] == "events"
