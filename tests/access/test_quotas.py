"""Quotas of domains: judged by the rows of the publishing transaction, also by two servers and in old databases."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from service.access.key_table import KeyTable
from service.access.keys import Grant, Scope
from service.access.quotas import Quota
from service.backup.transfer import back_up, restore
from service.database import open_database
from service.errors import StorageFull
from service.registry.bundle import BundleFiles
from service.registry.catalogue import catalogue_of
from service.registry.objects import Directory
from service.registry.store import Published, Registry
from service.settings import Settings
from tests.registry.bundles import AST, bundle

WRITE = Grant(frozenset({Scope.WRITE}), domain="acme")
MIB = 2**20


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    return Settings(data_dir=tmp_path / "data", database_url=url)


def registry_of(settings: Settings) -> Registry:
    return Registry(settings.data_dir, AST, database_url=settings.database_url)


@pytest.fixture
def registry(settings: Settings) -> Iterator[Registry]:
    with closing(registry_of(settings)) as opened:
        yield opened


def publish(registry: Registry, files: BundleFiles, quota: Quota | None, domain: str | None = "acme") -> Published:
    return registry.publish("events", files.config, files.weights, files.card, domain=domain, quota=quota)


def size(files: BundleFiles) -> int:
    return len(files.config) + len(files.weights) + len(files.card or b"")


def holdings(settings: Settings, domain: str = "acme") -> tuple[int, int]:
    with catalogue_of(settings.data_dir, settings.database_url).read() as transaction:
        return transaction.holdings(domain)


def test_admin_and_anonymous_know_none() -> None:
    settings = Settings(max_domain_mb=3, max_domain_versions=7)
    assert Quota.of(Grant(frozenset({Scope.ADMIN}), domain="acme"), settings) is None
    assert Quota.of(Grant(frozenset(Scope)), settings) is None
    assert Quota.of(WRITE, settings) == Quota("acme", 3 * MIB, 7)


def test_versions_are_counted_and_deleting_makes_room(registry: Registry, settings: Settings) -> None:
    quota = Quota("acme", 10 * MIB, 2)
    for seed in (1, 2):
        publish(registry, bundle(seed=seed), quota)
    with pytest.raises(StorageFull, match="acme holds 2 of 2 versions") as refused:
        publish(registry, bundle(seed=3), quota)
    assert "of 10 MiB" in refused.value.detail
    assert publish(registry, bundle(seed=1), quota).version.version == 1, "the same bytes are no new version"
    publish(registry, bundle(seed=4), replace(quota, domain="other"), "other")
    publish(registry, bundle(seed=5), None, None)
    assert [holdings(settings, domain)[0] for domain in ("acme", "other")] == [2, 1]
    registry.delete_version("events", 1)
    assert publish(registry, bundle(seed=3), quota).created


def test_bytes_are_those_of_all_files(registry: Registry, settings: Settings) -> None:
    first, second = (replace(bundle(seed=seed), card=b"card" * 1000) for seed in (1, 2))
    quota = Quota("acme", size(first) + size(second) - 1, 9)
    publish(registry, first, quota)
    assert holdings(settings) == (1, size(first))
    with pytest.raises(StorageFull, match="acme holds 1 of 9 versions"):
        publish(registry, second, quota)
    assert publish(registry, second, replace(quota, max_bytes=quota.max_bytes + 1)).created


def test_two_servers_cannot_pass_together(settings: Settings) -> None:
    with closing(registry_of(settings)) as one, closing(registry_of(settings)) as two, ThreadPoolExecutor(6) as pool:
        quota = Quota("acme", 10 * MIB, 3)

        def attempt(number: int) -> bool:
            try:
                return publish((one, two)[number % 2], bundle(seed=number), quota).created
            except StorageFull:
                return False

        assert sum(pool.map(attempt, range(12))) == 3
    assert holdings(settings)[0] == 3


def test_bundles_found_at_start_count_to_nobody(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    files = bundle()
    (tmp_path / "found" / "events").mkdir(parents=True)
    (tmp_path / "found" / "events" / "adapter_config.json").write_bytes(files.config)
    (tmp_path / "found" / "events" / "adapter_model.safetensors").write_bytes(files.weights)
    registry.register_directory(tmp_path / "found")
    assert registry.record("events").live == 1
    assert holdings(settings, "default") == (0, 0)


def test_a_database_of_a_release_without_domains_is_taken_over(settings: Settings) -> None:
    """What was uploaded then counts to `default`, the domain of the keys of then; what the server found does not."""
    with closing(registry_of(settings)) as registry:
        for seed, actor in ((1, "anonymous"), (2, "server"), (3, "0123456789ab")):
            files = bundle(seed=seed)
            registry.publish("events", files.config, files.weights, actor=actor)
    database = open_database(settings.data_dir, settings.database_url)
    key, _ = KeyTable(database).create("", Grant(frozenset({Scope.WRITE})))
    with database.write() as connection:
        for table, column in (("versions", "domain"), ("versions", "bytes"), ("api_keys", "domain")):
            connection.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {column}")
    with closing(registry_of(settings)) as registry:
        versions, stored = holdings(settings, "default")
        assert versions == 2
        assert stored == sum(one.weights_bytes for one in registry.record("events").versions if one.version != 2)
        assert publish(registry, bundle(seed=4), Quota("default", 10 * MIB, 3), "default").created
    assert KeyTable(database).all_keys() == [key]


def test_domains_move_with_a_backup(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    publish(registry, bundle(seed=1), None)
    with closing(catalogue_of(settings.data_dir, settings.database_url)) as catalogue:
        back_up(catalogue, Directory(settings.data_dir), tmp_path / "out", lambda done, total: None)
    there = Settings(data_dir=tmp_path / "there")
    with closing(catalogue_of(there.data_dir)) as catalogue:
        restore(catalogue, Directory(there.data_dir), tmp_path / "out", lambda done, total: None)
    assert holdings(there) == holdings(settings) == (1, size(bundle(seed=1)))
