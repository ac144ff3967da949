"""The bundles of `--adapters`, registered at every start: what is new, what is known, what does not fit."""

import logging
from pathlib import Path

import pytest

from service.errors import InvalidRequest
from service.registry.store import Registry
from tests.registry.bundles import AST, bundle, write_files
from tests.registry.publishing import publish


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "data", AST)


def test_register_directory(registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundles = tmp_path / "bundles"
    write_files(bundles / "a-good", bundle("events", seed=1))
    write_files(bundles / "b-good", bundle("sounds", seed=1))
    write_files(bundles / "c-foreign", bundle("foreign", backbone__hidden_size=32))
    (bundles / "d-empty").mkdir()
    (bundles / ".hidden").mkdir()
    (bundles / "README.md").write_text("not a bundle")
    with caplog.at_level(logging.ERROR):
        problems = registry.register_directory(bundles)
    assert list(problems) == ["a-good", "b-good", "c-foreign", "d-empty"]
    assert (problems["a-good"], problems["b-good"]) == (None, None)
    assert "backbone.hidden_size" in (problems["c-foreign"] or "")
    assert "missing" in (problems["d-empty"] or "")
    assert [record.name for record in registry.walk()] == ["events", "sounds"]
    assert len(caplog.records) == 2
    assert registry.register_directory(bundles) == problems
    assert [len(record.versions) for record in registry.walk()] == [1, 1]


def test_registering_repairs_what_is_known_to_be_damaged(tmp_path: Path) -> None:
    write_files(tmp_path / "bundles" / "one", bundle(seed=1))
    registry = Registry(tmp_path / "data", AST)
    registry.register_directory(tmp_path / "bundles")
    registry.weights_path(registry.resolve("events")).unlink()
    again = Registry(tmp_path / "data", AST)
    assert again.register_directory(tmp_path / "bundles") == {"one": None}
    again.load(again.resolve("events"))


def test_registering_respects_rollbacks_and_deletions(registry: Registry, tmp_path: Path) -> None:
    write_files(tmp_path / "bundles" / "one", bundle(seed=1))
    registry.register_directory(tmp_path / "bundles")
    publish(registry, bundle(seed=2))
    registry.register_directory(tmp_path / "bundles")
    assert registry.record("events").live == 2
    registry.delete_version("events", 1)
    assert registry.register_directory(tmp_path / "bundles") == {"one": None}
    assert [version.version for version in registry.record("events").versions] == [2]
    registry.delete_adapter("events")
    registry.register_directory(tmp_path / "bundles")
    assert list(registry.walk()) == []


def test_register_directory_that_is_not_there(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="not a directory"):
        registry.register_directory(tmp_path / "none")
