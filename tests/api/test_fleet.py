"""Adapters as a fleet: search and pages, history, several servers on one registry, one without its database."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.model.spec import TaskType
from tests.api.live import Live, running, settings_for
from tests.api.test_adapters import refused
from tests.bundles import random_bundle
from tests.postgres import Postgres
from tests.waiting import soon


@pytest.fixture
def pair(tiny_ast_dir: Path, tmp_path: Path) -> Iterator[tuple[Live, Live]]:
    """Two servers on one data directory."""
    settings = settings_for(tiny_ast_dir, tmp_path / "data")
    with running(settings) as one, running(settings) as other:
        yield one, other


def status_within_a_second(live: Live, clip: bytes, reference: str, expected: int) -> Any:
    def ask() -> httpx.Response:
        return live.http.post(f"/v1/classify?adapter={reference}", content=clip)

    soon(lambda: ask().status_code == expected, 1)
    return ask().json()


def test_servers_see_each_others_changes(pair: tuple[Live, Live], tmp_path: Path, clip: bytes) -> None:
    one, other = pair
    one.publish(tmp_path, "shared", seed=1)
    assert status_within_a_second(other, clip, "shared", 200)["results"][0]["version"] == 1
    other.publish(tmp_path, "shared", seed=2)
    status_within_a_second(one, clip, "shared@2", 200)
    one.http.put("/v1/adapters/shared/aliases/canary", json={"version": 1})
    status_within_a_second(other, clip, "shared@canary", 200)
    assert other.http.get("/v1/adapters/shared").json()["versions"][0]["state"] == "resident"
    one.http.delete("/v1/adapters/shared")
    status_within_a_second(other, clip, "shared", 404)
    soon(lambda: not other.context.runtime.engine.device._shared.slots.resident, 1)  # its slot is free again
    assert one.http.get("/v1/adapters/shared/history").json() == other.http.get("/v1/adapters/shared/history").json()


def test_history_in_pages(live: Live, tmp_path: Path) -> None:
    for seed in (1, 2):
        live.publish(tmp_path, "watched", seed=seed)
    live.http.put("/v1/adapters/watched/aliases/live", json={"version": 1})
    live.http.delete("/v1/adapters/watched/versions/2")
    live.http.delete("/v1/adapters/watched")
    changes, after = [], None
    while True:
        params = {"limit": 2} | ({"after": after} if after else {})
        page = live.http.get("/v1/adapters/watched/history", params=params).json()
        changes += page["history"]
        assert len(page["history"]) <= 2
        if (after := page["next"]) is None:
            break
    assert [(change["action"], change["version"], change["previous"]) for change in reversed(changes)] == [
        ("upload", 1, None),
        ("alias", 1, None),
        ("upload", 2, None),
        ("alias", 2, 1),
        ("alias", 1, 2),
        ("delete_version", 2, None),
        ("delete_adapter", None, None),
    ]
    assert {change["actor"] for change in changes} == {"anonymous"}
    assert refused(live.http.get("/v1/adapters/never-there/history")) == (404, "unknown_adapter")
    assert refused(live.http.get("/v1/adapters/watched/history?limit=0")) == (422, "invalid_request")


def test_history_names_the_key(tiny_ast_dir: Path, tmp_path: Path) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data", admin_keys="secret-key")) as live:
        live.http.headers["Authorization"] = "Bearer secret-key"
        live.publish(tmp_path, "owned", seed=1)
        history = live.http.get("/v1/adapters/owned/history").json()["history"]
    assert {change["actor"] for change in history} == {"env:admin-1"}


def test_search(tiny_ast_dir: Path, tmp_path: Path) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data", adapter_slots=2)) as live:
        live.publish(tmp_path, "birds", seed=1, description="Songs of the FOREST")
        live.publish(tmp_path, "bats", seed=2)
        live.publish(tmp_path, "people", task=TaskType.VERIFICATION)
        live.http.post("/v1/adapters/bats/load")
        damaged = live.context.runtime.registry.weights_path(live.context.runtime.registry.resolve("people"))
        damaged.write_bytes(b"damaged")

        def names(**params: str | int) -> list[str]:
            answer = live.http.get("/v1/adapters", params=params)
            assert answer.status_code == 200, answer.text
            return [adapter["name"] for adapter in answer.json()["adapters"]]

        assert names() == ["bats", "birds", "people"]
        assert names(q="B") == ["bats", "birds"]
        assert names(q="forest") == ["birds"]
        assert names(task="SPEAKER_VERIFICATION") == ["people"]
        assert names(state="resident") == ["bats"]
        assert names(state="registered") == ["birds"]
        assert names(state="failed") == ["people"]
        assert names(q="b", limit=1, after="bats") == ["birds"]
        first = live.http.get("/v1/adapters", params={"q": "b", "limit": 1}).json()
        assert (first["adapters"][0]["name"], first["next"]) == ("bats", "bats")
        assert live.http.get("/v1/adapters", params={"q": "b", "limit": 2}).json()["next"] is None
        assert names(q="nothing") == []
        for bad in ({"limit": 0}, {"state": "gone"}, {"task": "COOKING"}, {"q": "x" * 300}):
            assert refused(live.http.get("/v1/adapters", params=bad)) == (422, "invalid_request")


def test_without_its_database_the_service_infers_on(
    postgres: Postgres, tiny_ast_dir: Path, tmp_path: Path, clip: bytes
) -> None:
    url = postgres.new_database()
    with running(settings_for(tiny_ast_dir, tmp_path / "data", database_url=url)) as live:
        live.publish(tmp_path, "known", seed=1)
        assert live.http.get("/readyz").json() == {"status": "ready"}
        postgres.stop()
        soon(lambda: "degraded" in live.http.get("/readyz").json(), 5)
        ready = live.http.get("/readyz")
        assert ready.status_code == 200
        assert "the registry's database cannot be used" in ready.json()["degraded"]
        soon(lambda: "ipet_registry_up 0.0" in live.http.get("/metrics").text, 5)
        assert live.http.post("/v1/classify?adapter=known", content=clip).status_code == 200
        assert live.http.post("/v1/adapters/known/load").status_code == 200
        assert len(live.http.get("/v1/adapters").json()["adapters"]) == 1
        refusals = [
            live.upload(random_bundle(tmp_path, live.backbone, "late", 1), "late"),
            live.http.put("/v1/adapters/known/aliases/canary", json={"version": 1}),
            live.http.delete("/v1/adapters/known"),
            live.http.get("/v1/adapters/known/history"),
        ]
        for answer in refusals:
            assert refused(answer) == (503, "registry_unavailable")
            assert answer.headers["Retry-After"]
        postgres.start()
        soon(lambda: "degraded" not in live.http.get("/readyz").json(), 20)
        live.publish(tmp_path, "late", seed=1)
        assert live.http.post("/v1/classify?adapter=late", content=clip).status_code == 200
