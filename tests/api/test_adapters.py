"""The registry over HTTP: upload, versions, aliases, downloads, residency, deletion."""

import json
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from service.api.problems import MEDIA_TYPE
from service.registry.bundle import BundleFiles
from tests.api.live import Live, running, settings_for
from tests.bundles import random_bundle


@pytest.fixture
def fresh(tiny_ast_dir: Path, tmp_path: Path) -> Iterator[Live]:
    """A service of the test's own, without adapters, with two slots."""
    with running(settings_for(tiny_ast_dir, tmp_path / "data", adapter_slots=2)) as service:
        yield service


def refused(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def test_life_of_an_adapter(fresh: Live, tmp_path: Path, clip: bytes) -> None:
    first, second = (random_bundle(tmp_path, fresh.backbone, "events", seed) for seed in (1, 2))
    answer = fresh.upload(first, "events")
    assert answer.status_code == 201
    assert answer.json() == {"name": "events", "version": 1, "digest": first.digest, "live": True}
    again = fresh.upload(first, "events")
    assert again.status_code == 200
    assert again.json() == answer.json()
    assert fresh.upload(second, "events", activate="false").json()["live"] is False

    adapter = fresh.http.get("/v1/adapters/events").json()
    assert {key: adapter[key] for key in ("name", "task_type", "live", "aliases")} == {
        "name": "events",
        "task_type": "AUDIO_CLASSIFICATION",
        "live": 1,
        "aliases": {"live": 1},
    }
    assert [version["version"] for version in adapter["versions"]] == [1, 2]
    for version, files in zip(adapter["versions"], (first, second), strict=True):
        told = {"version", "digest", "created", "state", "verified", "tier", "pinned", "reason"}
        assert version.keys() == told | {"families", "domain"}
        assert (version["digest"], version["state"], version["verified"]) == (files.digest, "registered", True)
        assert (version["tier"], version["pinned"], version["reason"]) == ("disk", False, None)
        assert datetime.fromisoformat(version["created"]).tzinfo is not None
    assert fresh.http.get("/v1/adapters").json() == {"adapters": [adapter], "next": None}

    def version_of(reference: str) -> int:
        answer = fresh.http.post(f"/v1/classify?adapter={reference}", content=clip)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["results"][0]["version"])

    assert (version_of("events"), version_of("events@2")) == (1, 2)
    put = fresh.http.put("/v1/adapters/events/aliases/canary", json={"version": 2})
    assert put.json()["aliases"] == {"live": 1, "canary": 2}
    assert version_of("events@canary") == 2
    fresh.http.put("/v1/adapters/events/aliases/live", json={"version": 2})
    assert version_of("events") == 2
    fresh.http.put("/v1/adapters/events/aliases/live", json={"version": 1})  # and back
    assert version_of("events") == 1
    assert refused(fresh.http.delete("/v1/adapters/events/versions/1")) == (409, "version_is_live")

    assert fresh.http.delete("/v1/adapters/events/aliases/canary").status_code == 204
    assert refused(fresh.http.delete("/v1/adapters/events/aliases/canary")) == (404, "unknown_version")
    assert fresh.http.delete("/v1/adapters/events/versions/2").status_code == 204
    assert refused(fresh.http.post("/v1/classify?adapter=events@2", content=clip)) == (404, "unknown_version")
    third = random_bundle(tmp_path, fresh.backbone, "events", 3)
    assert fresh.upload(third, "events").json()["version"] == 3  # 2 is never used again
    assert fresh.http.delete("/v1/adapters/events").status_code == 204
    assert refused(fresh.http.get("/v1/adapters/events")) == (404, "unknown_adapter")
    assert refused(fresh.http.post("/v1/classify?adapter=events", content=clip)) == (404, "unknown_adapter")


def test_downloads_are_byte_for_byte(live: Live, tmp_path: Path) -> None:
    files = random_bundle(tmp_path, live.backbone, "fetched", 5)
    spaced = json.dumps(json.loads(files.config), indent=7).encode() + b"\n\n"
    live.upload(BundleFiles(spaced, files.weights), "fetched")
    base = "/v1/adapters/fetched/versions/1"
    assert live.http.get(f"{base}/config").content == spaced
    assert live.http.get(f"{base}/weights").content == files.weights
    assert refused(live.http.get("/v1/adapters/fetched/versions/2/weights")) == (404, "unknown_version")
    some = live.http.get(f"{base}/weights", headers={"Range": "bytes=2-9"})
    assert (some.status_code, some.content) == (206, files.weights[2:10])
    behind = live.http.get(f"{base}/weights", headers={"Range": f"bytes={len(files.weights)}-"})
    assert refused(behind) == (416, "range_not_satisfiable")
    assert behind.headers["content-range"] == f"bytes */{len(files.weights)}"
    for bad in ("bytes=x-y", "bytes=9-2", "bytes="):
        answer = live.http.get(f"{base}/weights", headers={"Range": bad})
        assert (*refused(answer), answer.headers["content-type"]) == (400, "bad_http", MEDIA_TYPE)
    assert refused(live.http.get("/v1/adapters/nobody/versions/1/config")) == (404, "unknown_adapter")
    assert refused(live.http.get("/v1/adapters/fetched/versions/one/config")) == (422, "invalid_request")


def test_pages_of_the_list(live: Live, tmp_path: Path) -> None:
    everything = live.http.get("/v1/adapters").json()["adapters"]
    names, after = [], None
    while True:
        page = live.http.get("/v1/adapters", params={"limit": 2} | ({"after": after} if after else {})).json()
        names += [adapter["name"] for adapter in page["adapters"]]
        if (after := page["next"]) is None:
            break
    assert names == [adapter["name"] for adapter in everything]
    assert len(names) >= 3


def test_a_list_that_has_not_changed_does_not_travel(live: Live) -> None:
    first = live.http.get("/v1/adapters?q=alpha")
    known = {"If-None-Match": first.headers["etag"]}
    again = live.http.get("/v1/adapters?q=alpha", headers=known)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert live.http.get("/v1/adapters?q=beta", headers=known).status_code == 200
    live.http.post("/v1/adapters/alpha/pin")  # where the device has it is told as well
    pinned = live.http.get("/v1/adapters?q=alpha", headers=known)
    assert pinned.status_code == 200
    assert pinned.json()["adapters"][0]["versions"][0]["pinned"]
    live.http.post("/v1/adapters/alpha/unpin")


def test_bad_bundles(live: Live, tmp_path: Path) -> None:
    good = random_bundle(tmp_path, live.backbone, "wrong", 6)
    config = json.loads(good.config)

    def upload(weights: bytes = good.weights, name: str = "wrong", **changes: object) -> tuple[int, str]:
        return refused(live.upload(BundleFiles(json.dumps(config | changes).encode(), weights), name))

    elsewhere = config["backbone"] | {"fingerprint": f"sha256:{'0' * 64}"}
    assert upload(weights=good.weights[:-10]) == (422, "invalid_bundle")
    assert upload(weights=b"\x80\x04 pickled") == (422, "invalid_bundle")
    assert upload(weights=b"") == (422, "invalid_bundle")
    assert upload(name="other") == (422, "invalid_bundle")
    assert upload(labels=[]) == (422, "invalid_bundle")
    assert upload(prompt_length=17) == (422, "invalid_bundle")
    assert upload(backbone=elsewhere) == (409, "backbone_mismatch")
    assert upload(backbone=config["backbone"] | {"hidden_size": 49}) == (409, "backbone_mismatch")
    assert refused(live.http.get("/v1/adapters/wrong")) == (404, "unknown_adapter")


@pytest.mark.parametrize("names", [["config"], ["weights"], ["config", "weights", "weights"], ["config", "more"]])
def test_bad_parts(live: Live, tmp_path: Path, names: list[str]) -> None:
    good = random_bundle(tmp_path, live.backbone, "wrong")
    contents = {"config": good.config, "weights": good.weights, "more": b"{}"}
    files = [(name, (name, contents[name])) for name in names]
    assert refused(live.http.post("/v1/adapters/wrong/versions", files=files)) == (422, "invalid_request")
    assert refused(live.http.get("/v1/adapters/wrong")) == (404, "unknown_adapter")


def test_an_upload_that_is_no_multipart(live: Live) -> None:
    answer = live.http.post("/v1/adapters/wrong/versions", content=b"x")
    assert refused(answer) == (422, "invalid_request")


@pytest.mark.parametrize("body", [{}, {"version": 0}, {"version": "x"}, {"version": 1, "more": 2}, [], None])
def test_bad_alias_bodies(live: Live, body: object) -> None:
    answer = live.http.put("/v1/adapters/alpha/aliases/canary", json=body)
    assert refused(answer) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (422, "invalid_request")),
        (b"{", (422, "invalid_request")),
        (b"[" * 100_000, (422, "invalid_request")),
        (b'{"version": ' + b"1" * 5_000 + b"}", (422, "invalid_request")),
        (b'{"version": ' + b"1" * 5_000_000 + b"}", (413, "payload_too_large")),
    ],
    ids=["empty", "broken", "deep", "huge number", "huge"],
)
def test_hostile_alias_bodies(live: Live, body: bytes, expected: tuple[int, str]) -> None:
    answer = live.http.put("/v1/adapters/alpha/aliases/canary", content=body)
    assert refused(answer) == expected
    assert len(answer.content) < 2_000
    assert live.context.budget.held == 0


def test_bad_aliases(live: Live) -> None:
    def put(alias: str, version: int = 1, name: str = "alpha") -> tuple[int, str]:
        return refused(live.http.put(f"/v1/adapters/{name}/aliases/{alias}", json={"version": version}))

    assert put("canary", version=9) == (404, "unknown_version")
    assert put("canary", name="nobody") == (404, "unknown_adapter")
    assert put("123") == (422, "invalid_request")
    assert put("Not-A-Name") == (422, "invalid_request")
    assert live.http.delete("/v1/adapters/alpha/aliases/live").status_code in (409, 422)


def test_residency_by_hand(fresh: Live, tmp_path: Path, clip: bytes) -> None:
    for seed, name in enumerate(("one", "two", "three")):
        fresh.publish(tmp_path, name, seed=seed)

    def post(path: str) -> httpx.Response:
        return fresh.http.post(f"/v1/adapters/{path}")

    loaded = {"name": "one", "version": 1, "state": "resident", "tier": "device", "pinned": False}
    assert post("one/load").json() == loaded
    assert fresh.http.get("/v1/adapters/one").json()["versions"][0]["state"] == "resident"
    assert post("one@1/unload").json() == loaded | {"state": "registered", "tier": "host"}
    assert post("one/pin").json() == loaded | {"pinned": True}
    assert fresh.http.get("/v1/adapters/one").json()["versions"][0]["pinned"] is True
    assert post("two/pin").json()["state"] == "resident"
    full = fresh.http.post("/v1/classify?adapter=three", content=clip)
    assert refused(full) == (409, "no_free_slot")
    assert refused(post("three/load")) == (409, "no_free_slot")
    assert post("two/unpin").status_code == 200
    assert fresh.http.post("/v1/classify?adapter=three", content=clip).status_code == 200
    assert refused(post("nobody/load")) == (404, "unknown_adapter")


def test_damaged_weights_fail_their_adapter_only(fresh: Live, tmp_path: Path, clip: bytes) -> None:
    fresh.publish(tmp_path, "good", seed=1)
    fresh.publish(tmp_path, "bad", seed=2)
    registry = fresh.context.runtime.registry
    path = registry.weights_path(registry.resolve("bad"))
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-5] ^= 0xFF
    path.write_bytes(content)
    answer = fresh.http.post("/v1/classify?adapter=good&adapter=bad", content=clip)
    assert refused(answer) == (503, "adapter_failed")
    assert answer.json()["adapter"].startswith("bad")
    (version,) = fresh.http.get("/v1/adapters/bad").json()["versions"]
    assert version["state"] == "failed"
    assert "its digest is sha256:" in version["reason"]
    assert refused(fresh.http.get("/v1/adapters/bad/versions/1/weights")) == (503, "adapter_failed")
    assert fresh.http.post("/v1/classify?adapter=good", content=clip).status_code == 200


def test_uploads_and_switches_while_requests_run(fresh: Live, tmp_path: Path, clip: bytes) -> None:
    """No request fails and each is answered whole by one version, while versions come and `live` moves."""
    fresh.publish(tmp_path, "hot", seed=0)
    stop, seen, failed = threading.Event(), set[int](), list[str]()

    def ask() -> None:
        with httpx.Client(base_url=fresh.url, timeout=30) as http:
            while not stop.is_set():
                answer = http.post("/v1/classify?adapter=hot&adapter=hot&top_k=0", content=clip)
                if answer.status_code != 200:
                    failed.append(answer.text)
                    return
                one, other = answer.json()["results"]
                if one["version"] != other["version"]:
                    failed.append("two versions in one request")
                seen.add(one["version"])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for seed in range(5):
            version = fresh.publish(tmp_path, "hot", seed=seed) if seed else 1
            while version not in seen and not failed:
                stop.wait(0.01)
        fresh.http.put("/v1/adapters/hot/aliases/live", json={"version": 1})
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed, failed[0]
    assert seen == {1, 2, 3, 4, 5}


def test_adapters_survive_a_restart(tiny_ast_dir: Path, tmp_path: Path, clip: bytes) -> None:
    (tmp_path / "bundles").mkdir()
    settings = settings_for(tiny_ast_dir, tmp_path / "data", adapters=tmp_path / "bundles")
    with running(settings) as service:
        random_bundle(tmp_path / "bundles", service.backbone, "shipped", 0)
        service.publish(tmp_path / "other", "kept", seed=1)
    with running(settings) as service:  # now with the bundle that was put there
        names = [adapter["name"] for adapter in service.http.get("/v1/adapters").json()["adapters"]]
        assert names == ["kept", "shipped"]
        assert service.http.post("/v1/classify?adapter=kept&adapter=shipped", content=clip).status_code == 200
        service.http.delete("/v1/adapters/shipped")
    with running(settings) as service:  # a digest seen before, even deleted, changes nothing
        assert [adapter["name"] for adapter in service.http.get("/v1/adapters").json()["adapters"]] == ["kept"]


def test_one_version(live: Live, tmp_path: Path) -> None:
    """What its manifest says and where the device has it; the card byte for byte, where there is one."""
    files = random_bundle(tmp_path, live.backbone, "detailed", description="barks", metrics={"accuracy": 0.9})
    card = b"# barks \xc3\xa9\n"
    parts = {"config": files.config, "weights": files.weights}
    assert live.http.post("/v1/adapters/detailed/versions", files=parts | {"card": card}).status_code == 201
    detail = live.http.get("/v1/adapters/detailed/versions/1").json()
    listed = live.http.get("/v1/adapters/detailed").json()["versions"][0]
    assert {name: detail[name] for name in listed} == listed
    config = json.loads(files.config)
    for name in ("name", "task_type", "description", "labels", "metrics"):
        assert detail[name] == config[name]
    assert detail["input"].items() >= {"window_frames": 64, "windows": None, "mean": -6.0}.items()
    assert detail["parts"].items() >= {"prompt_length": 3, "bottleneck_dim": 4}.items()
    assert detail["bytes"] == len(files.config) + len(files.weights)
    told = live.http.get("/v1/adapters/detailed/versions/1/card")
    assert (told.content, told.headers["etag"]) == (card, f'"{detail["digest"]}"')
    assert told.headers["content-type"] == "text/markdown; charset=utf-8"
    assert refused(live.http.get("/v1/adapters/alpha/versions/1/card")) == (404, "not_found")
    assert refused(live.http.get("/v1/adapters/detailed/versions/2")) == (404, "unknown_version")
