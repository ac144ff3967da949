import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from service.errors import (
    AdapterFailed,
    BackboneMismatch,
    InvalidBundle,
    InvalidRequest,
    StorageFull,
    UnknownAdapter,
    UnknownVersion,
    VersionIsLive,
    WrongTask,
)
from service.model.spec import TaskType
from service.registry.bundle import read_weights
from service.registry.catalogue import Transaction
from service.registry.fit import Fit
from service.registry.store import AdapterVersion, Published, Registry
from tests.registry.bundles import AST, FINGERPRINT, VERIFICATION, WAV2VEC2, bundle, fields
from tests.registry.publishing import publish


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "data", AST)


def objects(registry: Registry, version: Any) -> set[str]:
    directories = registry.weights_path(version).parents[1].iterdir()
    return {path.name for path in directories if not path.name.startswith(".")}


def test_versions_count_and_activate(registry: Registry) -> None:
    first = publish(registry, bundle(seed=1), activate=False)
    second = publish(registry, bundle(seed=2), activate=False)
    third = publish(registry, bundle(seed=3))
    assert [(p.version.version, p.created, p.live) for p in (first, second, third)] == [
        (1, True, True),  # the first is live in any case
        (2, True, False),
        (3, True, True),
    ]
    assert registry.resolve("events") == third.version
    assert registry.resolve("events@2") == second.version
    assert registry.resolve("events@live") == third.version
    record = registry.record("events")
    assert (record.live, record.aliases, record.task_type) == (3, {"live": 3}, TaskType.CLASSIFICATION)
    assert list(registry.walk()) == [record]
    assert hash(first.version) != hash(second.version)


def test_same_bytes_answer_the_same_version(registry: Registry) -> None:
    first = publish(registry, bundle(seed=1))
    publish(registry, bundle(seed=2))
    again = publish(registry, bundle(seed=1))
    assert again == Published(first.version, created=False, live=False)
    assert registry.record("events").live == 2


def test_files_come_back_byte_for_byte_after_restart(registry: Registry, tmp_path: Path) -> None:
    files = bundle(seed=1, backbone__fingerprint=FINGERPRINT)
    published = publish(registry, files).version
    registry.set_alias("events", "canary", 1)
    reopened = Registry(tmp_path / "data", AST)
    version = reopened.resolve("events@canary")
    assert version == published
    assert version.verified
    assert version.config == files.config
    assert reopened.weights_path(version).read_bytes() == files.weights
    assert reopened.card_bytes(version) == files.card
    assert version.weights_bytes == len(files.weights)
    assert list(reopened.walk()) == list(registry.walk())


def test_load_gives_the_tensors(registry: Registry) -> None:
    version = publish(registry, bundle(seed=1)).version
    expected = read_weights(bundle(seed=1).weights, version.manifest, AST)
    loaded = registry.load(version).to_tensors()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize("reference", ["", "@", "Events", "../x", "a@b@c", "a\nb", "x" * 500, "none", "none@2"])
def test_unknown_adapters(registry: Registry, reference: str) -> None:
    publish(registry, bundle())
    with pytest.raises(UnknownAdapter) as caught:
        registry.resolve(reference)
    assert caught.value.adapter == reference[:130]


@pytest.mark.parametrize("selector", ["", "2", "0", "01", "-1", "canary", "٣", "9" * 400, "LIVE", "1 "])
def test_unknown_versions(registry: Registry, selector: str) -> None:
    publish(registry, bundle())
    with pytest.raises(UnknownVersion):
        registry.resolve(f"events@{selector}")


@pytest.mark.parametrize(
    ("name", "changes", "error"),
    [
        ("Events", {}, InvalidRequest),
        ("../events", {}, InvalidRequest),
        ("sounds", {}, InvalidBundle),
        ("events", {"backbone__hidden_size": 32}, BackboneMismatch),
        ("events", {"backbone__fingerprint": "sha256:" + "0" * 64}, BackboneMismatch),
        ("events", {"prompt_length": 5}, InvalidBundle),
        ("events", {"labels": ["one"]}, InvalidBundle),
        ("events", {"prompt_length": 129}, InvalidBundle),
    ],
)
def test_refused_uploads_leave_nothing(
    registry: Registry, tmp_path: Path, name: str, changes: dict[str, Any], error: type[Exception]
) -> None:
    config = json.dumps(fields(**changes)).encode()
    with pytest.raises(error):
        registry.publish(name, config, bundle().weights)
    assert list(registry.walk()) == []
    assert list((tmp_path / "data" / "objects").glob("[!.]*")) == []


def test_a_quota_is_judged_where_a_version_would_be_added(registry: Registry, tmp_path: Path) -> None:
    judged: list[tuple[int, int]] = []

    def one(transaction: Transaction, size: int) -> None:
        there = len(transaction.adapter("events").versions)
        judged.append((there, size))
        if there:
            raise StorageFull("one version is allowed")

    files, other = bundle(seed=1), bundle(seed=2)
    for _ in range(2):  # the second time nothing would be added
        registry.publish("events", files.config, files.weights, files.card, quota=one)
    with pytest.raises(StorageFull, match="one version is allowed"):
        registry.publish("events", other.config, other.weights, quota=one)
    assert judged == [
        (0, len(files.config + files.weights + (files.card or b""))),
        (1, len(other.config + other.weights)),
    ]
    assert [version.version for version in registry.record("events").versions] == [1]
    assert objects(registry, registry.resolve("events")) == {files.digest.removeprefix("sha256:")}


def test_oversized_cards_are_refused(registry: Registry) -> None:
    with pytest.raises(InvalidBundle, match=r"README\.md"):
        publish(registry, replace(bundle(), card=bytes(2**20 + 1)))


def test_a_name_keeps_its_task(tmp_path: Path) -> None:
    registry = Registry(tmp_path, AST)
    publish(registry, bundle())
    other = fields(
        VERIFICATION, name="events", bottleneck_dim=0, backbone=fields()["backbone"], input=fields()["input"]
    )
    head = {"head.embedding.weight": torch.zeros(12, 16), "head.embedding.bias": torch.zeros(12)}
    with pytest.raises(WrongTask, match="needs another name"):
        registry.publish("events", json.dumps(other).encode(), safetensors.torch.save(head))


def test_aliases_roll_back_and_forward(registry: Registry) -> None:
    for seed in (1, 2):
        publish(registry, bundle(seed=seed))
    assert registry.set_alias("events", "live", 1).live == 1
    assert registry.resolve("events").version == 1
    assert registry.set_alias("events", "canary", 2).aliases == {"live": 1, "canary": 2}
    registry.delete_alias("events", "canary")
    assert registry.record("events").aliases == {"live": 1}


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda r: r.set_alias("events", "2", 1), InvalidRequest),
        (lambda r: r.set_alias("events", "a/b", 1), InvalidRequest),
        (lambda r: r.set_alias("events", "canary", 9), UnknownVersion),
        (lambda r: r.set_alias("none", "canary", 1), UnknownAdapter),
        (lambda r: r.delete_alias("events", "live"), VersionIsLive),
        (lambda r: r.delete_alias("events", "none"), UnknownVersion),
        (lambda r: r.delete_alias("none", "live"), UnknownAdapter),
        (lambda r: r.delete_version("events", 1), VersionIsLive),
        (lambda r: r.delete_version("events", 7), UnknownVersion),
        (lambda r: r.delete_version("none", 1), UnknownAdapter),
        (lambda r: r.delete_adapter("none"), UnknownAdapter),
        (lambda r: r.record("none"), UnknownAdapter),
    ],
)
def test_refused_changes(registry: Registry, call: Any, error: type[Exception]) -> None:
    publish(registry, bundle())
    before = list(registry.walk())
    with pytest.raises(error):
        call(registry)
    assert list(registry.walk()) == before


def test_deleting_a_version_takes_its_aliases_and_files(registry: Registry, tmp_path: Path) -> None:
    first = publish(registry, bundle(seed=1)).version
    second = publish(registry, bundle(seed=2)).version
    registry.set_alias("events", "old", 1)
    registry.delete_version("events", 1)
    assert objects(registry, second) == {second.digest.removeprefix("sha256:")}
    for known in (registry, Registry(tmp_path / "data", AST)):
        assert known.record("events").aliases == {"live": 2}
        with pytest.raises(UnknownVersion):
            known.resolve("events@1")
    with pytest.raises(AdapterFailed, match="missing"):
        registry.load(first)


def test_numbers_are_never_used_again(registry: Registry, tmp_path: Path) -> None:
    publish(registry, bundle(seed=1))
    publish(registry, bundle(seed=2))
    registry.delete_version("events", 1)
    revived = publish(registry, bundle(seed=1), activate=False)
    assert (revived.version.version, revived.created, revived.live) == (3, True, False)
    registry.delete_adapter("events")
    assert list(registry.walk()) == []
    again = publish(Registry(tmp_path / "data", AST), bundle(seed=2), activate=False)
    assert (again.version.version, again.created, again.live) == (4, True, True)


def test_concurrent_uploads_give_consecutive_versions(registry: Registry, tmp_path: Path) -> None:
    second = Registry(tmp_path / "data", AST)  # as another process would have it

    def upload(seed: int) -> int:
        return publish(registry if seed % 2 else second, bundle(seed=seed)).version.version

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(upload, range(16)))
    assert sorted(numbers) == list(range(1, 17))
    reopened = Registry(tmp_path / "data", AST)
    for seed, number in enumerate(numbers):
        version = reopened.resolve(f"events@{number}")
        assert reopened.weights_path(version).read_bytes() == bundle(seed=seed).weights


def test_concurrent_uploads_of_the_same_bytes_give_one_version(registry: Registry) -> None:
    files = bundle()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: publish(registry, files), range(8)))
    assert {answer.version.version for answer in answers} == {1}
    assert sum(answer.created for answer in answers) == 1


def test_what_a_slow_reader_found_before_a_change_is_not_kept(registry: Registry) -> None:
    first, found, check = publish(registry, bundle(seed=1)).version, [], Fit.check_fit

    def changed_meanwhile(fit: Fit, version: AdapterVersion) -> None:
        check(fit, version)
        patch.undo()
        found.append(publish(registry, bundle(seed=2)).version)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "check_fit", changed_meanwhile)
        assert registry.resolve("events") == first
    assert [registry.resolve("events")] == found


def test_readers_never_see_a_version_half_there(registry: Registry) -> None:
    publish(registry, bundle(seed=0))
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            version = registry.resolve("events")
            assert registry.weights_path(version).exists()
            seen.append(version.version)

    reader = threading.Thread(target=read)
    reader.start()
    for seed in range(1, 6):
        publish(registry, bundle(seed=seed))
    stop.set()
    reader.join()
    assert seen == sorted(seen)


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_damage_fails_that_version_only_and_an_upload_repairs_it(registry: Registry, damage: str) -> None:
    files = bundle(seed=1)
    version = publish(registry, files).version
    other = publish(registry, bundle(seed=2)).version
    path = registry.weights_path(version)
    if damage == "flip":
        path.write_bytes(files.weights[:-1] + bytes([files.weights[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(files.weights[:-1])
    else:
        path.unlink()
    assert (registry.problem(version) is None) == (damage == "flip")
    with pytest.raises(AdapterFailed, match=r"events@1: .*(damaged|missing)") as caught:
        registry.load(version)
    assert caught.value.adapter == "events@1"
    registry.load(other)
    assert not publish(registry, files).created
    assert registry.problem(version) is None
    registry.load(version)


def test_a_full_disk_refuses_and_goes_on(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    version = publish(registry, bundle(seed=1)).version

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageFull):
            publish(registry, bundle(seed=2))
    assert registry.resolve("events") == version
    registry.load(version)
    assert publish(registry, bundle(seed=2)).version.version == 2


def test_another_backbone_lists_and_refuses(registry: Registry, tmp_path: Path) -> None:
    publish(registry, bundle(seed=1))
    publish(registry, bundle(seed=2))
    other = Registry(tmp_path / "data", WAV2VEC2)
    version = other.version("events", 1)
    assert other.record("events").live == 2
    assert "backbone.model_type" in (other.problem(version) or "")
    for call in (lambda: other.resolve("events@1"), lambda: other.load(version)):
        with pytest.raises(BackboneMismatch) as caught:
            call()
        assert caught.value.adapter == "events@1"
    with pytest.raises(BackboneMismatch):
        other.set_alias("events", "live", 1)


def test_smaller_slots_than_before_list_and_refuse(registry: Registry, tmp_path: Path) -> None:
    publish(registry, bundle())
    smaller = Registry(tmp_path / "data", AST, max_prompt_length=2)
    assert len(list(smaller.walk())) == 1
    with pytest.raises(AdapterFailed, match="prompt_length"):
        smaller.resolve("events")


def test_orphans_go_at_start(registry: Registry, tmp_path: Path) -> None:
    version = publish(registry, bundle()).version
    orphan = tmp_path / "data" / "objects" / ("0" * 64)
    orphan.mkdir()
    Registry(tmp_path / "data", AST)
    assert objects(registry, version) == {version.digest.removeprefix("sha256:")}
