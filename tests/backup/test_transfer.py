"""Export and import: the same registry elsewhere, byte for byte; nothing half, nothing twice, nothing mistaken."""

import json
from pathlib import Path

import pytest

from service.backup.transfer import Moved, back_up, restore
from service.errors import InvalidBundle, InvalidRequest
from service.registry.catalogue import catalogue_of
from service.registry.objects import Directory
from service.registry.store import Registry
from tests.registry.bundles import AST, bundle
from tests.registry.publishing import publish


def transfer(action: object, data_dir: Path, directory: Path, url: str = "") -> Moved:
    catalogue, objects = catalogue_of(data_dir, url), Directory(data_dir)
    try:
        return action(catalogue, objects, directory, lambda done, total: None)  # type: ignore[operator, no-any-return]
    finally:
        objects.quarantine.close()


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A data directory with rollbacks, deletions and a second adapter."""
    registry = Registry(tmp_path / "source", AST)
    for seed in (1, 2, 3):
        publish(registry, bundle(seed=seed), actor=f"key-{seed}")
    registry.set_alias("events", "canary", 3)
    registry.set_alias("events", "live", 1, "key-2")
    registry.delete_version("events", 2)
    publish(registry, bundle("sounds", seed=1), "sounds")
    publish(registry, bundle("gone", seed=1), "gone")
    registry.delete_adapter("gone")
    registry.close()
    return tmp_path / "source"


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_round_trip(source: Path, tmp_path: Path, database: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("postgres_url") if database == "postgres" else ""
    assert transfer(back_up, source, tmp_path / "first") == Moved(adapters=3, versions=3)
    target = Registry(tmp_path / "target", AST, database_url=url)
    target.follow(0.05)
    assert transfer(restore, tmp_path / "target", tmp_path / "first", url).versions == 3
    transfer(back_up, tmp_path / "target", tmp_path / "second", url)
    assert tree(tmp_path / "first") == tree(tmp_path / "second")

    again = transfer(restore, tmp_path / "target", tmp_path / "first", url)
    assert (again.versions, again.skipped) == (0, 5)
    transfer(back_up, tmp_path / "target", tmp_path / "third", url)
    assert tree(tmp_path / "first") == tree(tmp_path / "third")
    target.close()

    original = Registry(source, AST)
    reopened = Registry(tmp_path / "target", AST, database_url=url)
    assert list(reopened.walk()) == list(original.walk())
    for version in reopened.record("events").versions:
        assert reopened.load(version).to_tensors().keys() == original.load(version).to_tensors().keys()
    for name in ("events", "gone"):
        for one, other in zip(reopened.history(name, 100), original.history(name, 100), strict=True):
            assert (one.at, one.actor, one.action, one.version) == (other.at, other.actor, other.action, other.version)
    revived = publish(reopened, bundle("gone", seed=1), "gone")
    assert revived.version.version == 2  # numbers are not used again on this side either
    for registry in (original, reopened):
        registry.close()


def test_a_running_server_sees_what_is_imported(source: Path, tmp_path: Path) -> None:
    transfer(back_up, source, tmp_path / "out")
    target = Registry(tmp_path / "target", AST)
    transfer(restore, tmp_path / "target", tmp_path / "out")
    target._catch_up()
    assert [record.name for record in list(target.walk())] == ["events", "sounds"]
    assert target.resolve("events@canary").version == 3
    target.load(target.resolve("events"))


def test_import_adds_what_is_newer(source: Path, tmp_path: Path) -> None:
    target = Registry(tmp_path / "target", AST)
    publish(target, bundle(seed=1))
    publish(target, bundle("own", seed=1), "own")
    transfer(back_up, source, tmp_path / "out")
    moved = transfer(restore, tmp_path / "target", tmp_path / "out")
    assert (moved.versions, moved.skipped) == (2, 1)
    target._catch_up()
    assert [version.version for version in target.record("events").versions] == [1, 3]
    assert target.record("events").aliases == {"live": 1, "canary": 3}
    assert [record.name for record in list(target.walk())] == ["events", "own", "sounds"]


def test_a_number_never_changes_its_bytes(source: Path, tmp_path: Path) -> None:
    target = Registry(tmp_path / "target", AST)
    publish(target, bundle(seed=9))
    transfer(back_up, source, tmp_path / "out")
    before = list(target.walk())
    with pytest.raises(InvalidRequest, match="events@1 is sha256:"):
        transfer(restore, tmp_path / "target", tmp_path / "out")
    target._catch_up()
    assert list(target.walk()) == before


def test_damage_is_told_and_not_served(source: Path, tmp_path: Path) -> None:
    registry = Registry(source, AST)
    version = registry.resolve("sounds")
    registry.weights_path(version).write_bytes(b"damaged")
    moved = transfer(back_up, source, tmp_path / "out")
    assert (moved.versions, moved.damaged.keys()) == (2, {"sounds@1"})
    transfer(restore, tmp_path / "target", tmp_path / "out")
    target = Registry(tmp_path / "target", AST)
    assert "is missing" in (target.problem(target.resolve("sounds")) or "")
    publish(target, bundle("sounds", seed=1), "sounds")
    target.load(target.resolve("sounds"))


def test_what_is_no_export_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="is not empty"):
        transfer(back_up, source, source)
    with pytest.raises(InvalidRequest, match="a backup"):
        transfer(restore, tmp_path / "target", source)
    transfer(back_up, source, tmp_path / "out")
    weights = next((tmp_path / "out" / "objects").glob("*/adapter_model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(InvalidBundle, match="the backup is damaged"):
        transfer(restore, tmp_path / "target", tmp_path / "out")
    document = json.loads((tmp_path / "out" / "catalogue.json").read_text())
    document["adapters"][0]["name"] = "../../etc"
    (tmp_path / "out" / "catalogue.json").write_text(json.dumps(document))
    with pytest.raises(InvalidRequest, match="cannot name an adapter"):
        transfer(restore, tmp_path / "target", tmp_path / "out")
