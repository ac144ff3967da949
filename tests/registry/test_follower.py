"""Several processes on one catalogue see each other's changes, and go on serving without its database."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from service.errors import RegistryUnavailable, UnknownAdapter, UnknownVersion
from service.registry.adapters import AdapterVersion
from service.registry.catalogue import catalogue_of
from service.registry.store import Registry
from tests import waiting
from tests.postgres import Postgres
from tests.registry.bundles import AST, bundle
from tests.registry.publishing import publish

POLL = 0.05  # seconds


@pytest.fixture(params=["sqlite", "postgres"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Registry, Registry]]:
    """Two registries on one data directory and database, as two processes have them."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    registries = Registry(tmp_path, AST, database_url=url), Registry(tmp_path, AST, database_url=url, grace_seconds=30)
    for registry in registries:
        registry.follow(POLL)
    yield registries
    for registry in registries:
        registry.close()


def soon(condition: Callable[[], object], seconds: float = 1.0) -> None:
    """Waits until a condition holds, for which what it asks for must be known; it must within so many seconds."""

    def holds() -> object:
        with suppress(UnknownAdapter, UnknownVersion):
            return condition()
        return False

    waiting.soon(holds, seconds)


def test_a_database_of_another_encoding_is_read(postgres: Postgres, tmp_path: Path) -> None:
    """In SQL_ASCII the driver answers bytes unless it is told what they are."""
    url = postgres.new_database("SQL_ASCII")
    for _ in range(2):
        registry = Registry(tmp_path, AST, database_url=url)
        if not list(registry.walk()):
            publish(registry, bundle(description="Vögel, ночь"))
        (record,) = registry.walk()
        assert record.versions[0].manifest.description == "Vögel, ночь"
        registry.close()
    postgres.drop_database(url)


def test_each_sees_the_others_changes_within_a_second(pair: tuple[Registry, Registry]) -> None:
    one, other = pair
    gone: list[AdapterVersion] = []
    other.on_gone(gone.extend)
    publish(one, bundle(seed=1))
    soon(lambda: other.resolve("events"))
    publish(other, bundle(seed=2))
    soon(lambda: one.resolve("events").version == 2)
    one.set_alias("events", "live", 1)
    one.set_alias("events", "canary", 2)
    soon(lambda: other.resolve("events").version == 1 and other.resolve("events@canary").version == 2)
    one.delete_version("events", 2)
    soon(lambda: [version.version for version in other.record("events").versions] == [1])
    assert [version.reference for version in gone] == ["events@2"]
    assert publish(other, bundle(seed=3)).version.version == 3
    other.delete_adapter("events")
    soon(lambda: not list(one.walk()))


def test_numbers_stay_consecutive_between_processes(pair: tuple[Registry, Registry]) -> None:
    numbers = [publish(pair[seed % 2], bundle(seed=seed)).version.version for seed in range(6)]
    assert numbers == [1, 2, 3, 4, 5, 6]


def test_files_of_deleted_versions_stay_for_who_was_admitted_before(pair: tuple[Registry, Registry]) -> None:
    _, patient = pair
    admitted = publish(patient, bundle(seed=1)).version
    publish(patient, bundle(seed=2))
    patient.delete_version("events", 1)
    with pytest.raises(UnknownVersion):
        patient.resolve("events@1")
    patient.load(admitted)
    patient._retired = dict.fromkeys(patient._retired, 0.0)  # the grace is over
    soon(lambda: not patient.weights_path(admitted).exists())


def test_a_refresh_reads_what_changed_and_nothing_else(tmp_path: Path) -> None:
    """Figures for 5,000 adapters are printed by tests/registry/fleet.py."""
    many = 100
    registry = Registry(tmp_path, AST)
    fill(tmp_path, many)
    registry._catch_up()
    assert len(list(registry.walk())) == many
    before = dict(registry._records)
    catalogue = catalogue_of(tmp_path)
    with catalogue.write() as transaction:
        transaction.set_alias("fleet-00007", "canary", 1)
        transaction.delete_adapter("fleet-00008")
    registry._catch_up()
    changed = {name for name, record in before.items() if registry._records.get(name) is not record}
    assert changed == {"fleet-00007", "fleet-00008"}
    assert registry.record("fleet-00007").versions[0] is before["fleet-00007"].versions[0]
    assert [record.name for record in list(registry.walk("fleet-00006"))[:2]] == ["fleet-00007", "fleet-00009"]


def fill(data_dir: Path, count: int) -> None:
    """Registers adapters without files, which is quick."""
    catalogue = catalogue_of(data_dir)
    with catalogue.write() as transaction:
        for number in range(count):
            name = f"fleet-{number:05}"
            transaction.add_version(name, f"sha256:{number:064x}", bundle_config(name), 1)
            transaction.set_alias(name, "live", 1)


def bundle_config(name: str) -> bytes:
    return CONFIG.replace(b'"events"', f'"{name}"'.encode())


CONFIG = bundle().config


def test_without_the_database_what_is_known_is_served(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.new_database()
    registry, other = (Registry(tmp_path, AST, database_url=url) for _ in range(2))
    reachable: list[bool] = []
    registry.follow(POLL, reachable.append)
    version = publish(registry, bundle(seed=1)).version
    soon(lambda: reachable and registry.degraded is None)
    postgres.stop()
    soon(lambda: registry.degraded, 5)
    assert "the registry's database cannot be used" in (registry.degraded or "")
    assert reachable[-1] is False
    assert registry.resolve("events") == version
    registry.load(version)
    for change in (
        lambda: publish(registry, bundle(seed=2)),
        lambda: registry.set_alias("events", "canary", 1),
        lambda: registry.delete_adapter("events"),
        lambda: registry.history("events", 10),
    ):
        with pytest.raises(RegistryUnavailable) as caught:
            change()
        assert caught.value.retry_after
    assert next(registry.walk()).versions == (version,)
    postgres.start()
    soon(lambda: registry.degraded is None, 5)
    publish(other, bundle(seed=3))
    soon(lambda: registry.resolve("events").version == 2, 5)
    assert publish(registry, bundle(seed=2)).version.version == 3
    for one in (registry, other):
        one.close()
