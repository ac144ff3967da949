"""Two servers, each with a data directory of its own, on one PostgreSQL and one object store."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.access.key_table import KeyTable
from service.access.keys import Grant, Rate, Scope
from service.database import SCHEMA, Database
from service.errors import RegistryUnavailable
from tests.api.live import Live, running, settings_for
from tests.bundles import random_bundle
from tests.postgres import Postgres
from tests.s3 import S3
from tests.waiting import soon

IDLE_SECONDS = 5.0  # in which each looks once
AWAY = "registry_unavailable"


@dataclass(frozen=True, slots=True)
class Fleet:
    """Servers of one registry; `another` has another backbone."""

    one: Live
    other: Live
    another: Live
    database: str
    bucket: str


@pytest.fixture(scope="module")
def fleet(
    postgres_server: Postgres,
    s3_server: S3,
    tiny_ast_dir: Path,
    tiny_wav2vec2_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("shared")
    places = {"database_url": postgres_server.new_database(), "objects": s3_server.new_bucket()}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running(settings_for(backbone, directory / str(number), admin_keys="root", **places)))
            for number, backbone in enumerate((tiny_ast_dir, tiny_ast_dir, tiny_wav2vec2_dir))
        ]
        for one in servers:
            one.http.headers["Authorization"] = "Bearer root"
        yield Fleet(*servers, *places.values())


def degraded(live: Live) -> str:
    answer = live.http.get("/readyz")
    assert answer.status_code == 200
    return str(answer.json().get("degraded", ""))


def classify(live: Live, clip: bytes, name: str) -> int:
    return live.http.post("/v1/classify", params={"adapter": name}, content=clip).status_code


def test_an_upload_through_one_is_served_by_both_within_a_second(fleet: Fleet, tmp_path: Path, clip: bytes) -> None:
    soon(lambda: fleet.other.context.notices.is_listening, 5)
    for number in range(3):
        fleet.one.publish(tmp_path, f"first-{number}")
        began = time.monotonic()
        soon(lambda name=f"first-{number}": classify(fleet.other, clip, name) == 200, 1)  # type: ignore[misc]
        print(f"served by the other after {time.monotonic() - began:.3f} s")
    fleet.other.http.delete("/v1/adapters/first-0").raise_for_status()
    soon(lambda: classify(fleet.one, clip, "first-0") == 404, 1)


def test_a_key_made_elsewhere_is_known_within_a_second(fleet: Fleet) -> None:
    table = KeyTable(Database(fleet.database))
    key, token = table.create("", Grant(frozenset({Scope.READ})))

    def status() -> int:
        return fleet.other.http.get("/v1/adapters", headers={"Authorization": f"Bearer {token}"}).status_code

    soon(lambda: status() == 200, 1)
    table.revoke(key.id)
    soon(lambda: status() == 401, 1)


def test_the_limits_of_a_key_hold_for_both_together(fleet: Fleet) -> None:
    grant = Grant(frozenset({Scope.READ}), rate=Rate.parse("6/h"))
    key, token = KeyTable(Database(fleet.database)).create("", grant)

    def ask(live: Live) -> httpx.Response:
        return live.http.get("/v1/key", headers={"Authorization": f"Bearer {token}"})

    def heard() -> bool:
        """Whether the other server knows the key, and what it has used."""
        keys, used = fleet.other.context.keys._stored or {}, fleet.other.context.gate._used.get(key.id)
        return key.id in keys and used is not None and used.bucket is not None and used.bucket.left == 1

    soon(lambda: ask(fleet.one).status_code == 200, 1)
    for _ in range(4):
        assert ask(fleet.one).status_code == 200
    soon(heard, 2)
    assert ask(fleet.other).headers["ratelimit"].startswith('"rate";r=0;')
    refused = ask(fleet.other)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")


def test_idle_servers_keep_one_connection_and_seldom_make_another(fleet: Fleet) -> None:
    database = Database(fleet.database)

    def sessions() -> int:
        with database.outside() as connection:
            connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
            count = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
            return int(connection.exec_driver_sql(count).scalar_one())

    time.sleep(1.0)
    before = sessions()
    time.sleep(IDLE_SECONDS)
    a_second = (sessions() - before - 1) / IDLE_SECONDS / 3
    print(f"{a_second:.2f} new connections a second and server")
    assert a_second < 2.0


def test_without_the_database_what_is_known_is_served(
    fleet: Fleet, postgres: Postgres, tmp_path: Path, clip: bytes
) -> None:
    fleet.one.publish(tmp_path, "kept")
    soon(lambda: classify(fleet.other, clip, "kept") == 200, 1)
    postgres.stop()
    for live in (fleet.one, fleet.other):
        soon(lambda live=live: "database cannot be used" in degraded(live), 3)  # type: ignore[misc]
        assert classify(live, clip, "kept") == 200
        refused = live.upload(random_bundle(tmp_path, live.backbone, "late"), "late")
        assert (refused.status_code, refused.json()["code"]) == (503, AWAY)
        assert refused.headers["retry-after"]
    postgres.start()
    for live in (fleet.one, fleet.other):
        soon(lambda live=live: not degraded(live), 5)  # type: ignore[misc]
    fleet.one.publish(tmp_path, "back")
    soon(lambda: classify(fleet.other, clip, "back") == 200, 2)


def test_without_the_store_what_lies_here_is_served(fleet: Fleet, s3: S3, tmp_path: Path, clip: bytes) -> None:
    fleet.one.publish(tmp_path, "near")
    assert classify(fleet.one, clip, "near") == 200
    s3.stop()
    fleet.one.context.runtime.registry._watching.wake()  # else within five seconds
    soon(lambda: "object store" in degraded(fleet.one), 5)
    fleet.one.http.post("/v1/adapters/near/unload").raise_for_status()
    assert classify(fleet.one, clip, "near") == 200
    refused = fleet.one.upload(random_bundle(tmp_path, fleet.one.backbone, "far"), "far")
    assert (refused.status_code, refused.json()["code"]) == (503, AWAY)
    assert fleet.one.http.get("/v1/adapters/far").status_code == 404
    missing = fleet.other.http.post("/v1/classify", params={"adapter": "near"}, content=clip)
    assert (missing.status_code, missing.json()["code"]) == (503, "adapter_failed")
    assert "object store" in missing.json()["detail"]
    s3.start()
    fleet.one.context.runtime.registry._watching.wake()
    soon(lambda: not degraded(fleet.one), 5)
    fleet.one.publish(tmp_path, "far")
    soon(lambda: classify(fleet.other, clip, "near") == 200, 5)


def test_another_backbone_lists_what_it_cannot_run_and_says_why(fleet: Fleet, tmp_path: Path, clip: bytes) -> None:
    fleet.one.publish(tmp_path, "foreign")
    soon(lambda: fleet.another.http.get("/v1/adapters/foreign").status_code == 200, 1)
    (version,) = fleet.another.http.get("/v1/adapters/foreign").json()["versions"]
    assert version["state"] == "failed"
    assert "the server's backbone" in version["reason"]
    refused = fleet.another.http.post("/v1/classify", params={"adapter": "foreign"}, content=clip)
    assert (refused.status_code, refused.json()["code"]) == (409, "backbone_mismatch")
    moved = fleet.another.http.put("/v1/adapters/foreign/aliases/live", json={"version": 1})
    assert (moved.status_code, moved.json()["code"]) == (409, "backbone_mismatch")
    files = random_bundle(tmp_path / "again", fleet.one.backbone, "foreign", seed=2)
    refused = fleet.another.upload(files, "foreign")
    assert (refused.status_code, refused.json()["code"]) == (409, "backbone_mismatch")
    assert classify(fleet.one, clip, "foreign") == 200


def test_an_older_release_changes_nothing_of_what_a_newer_one_has_changed(
    fleet: Fleet, tmp_path: Path, clip: bytes
) -> None:
    fleet.one.publish(tmp_path, "old")
    database = Database(fleet.database)

    def bring_to(schema: int) -> None:
        with database.outside() as connection:
            connection.exec_driver_sql(f"UPDATE schema_version SET version = {schema}")
        fleet.one.context.runtime.registry._following.wake()  # else within five seconds

    bring_to(SCHEMA + 1)
    reason = f"a newer release of ipet-serve has brought the database to schema {SCHEMA + 1}, this one knows {SCHEMA}"
    try:
        refused = fleet.one.upload(random_bundle(tmp_path, fleet.one.backbone, "new"), "new")
        assert (refused.status_code, refused.json()["code"]) == (503, AWAY)
        assert reason in refused.json()["detail"]
        assert classify(fleet.one, clip, "old") == 200
        soon(lambda: reason in degraded(fleet.one), 20)
        with pytest.raises(RegistryUnavailable, match=reason):
            KeyTable(Database(fleet.database))
    finally:
        bring_to(SCHEMA)
    soon(lambda: not degraded(fleet.one), 20)  # each of those who follow the database looks every five seconds
