"""Who may what over HTTP: one's own key, the metrics, pins, quotas, what is refused, and a database that gets lost."""

import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from service.access.key_table import KeyTable
from service.access.keys import Grant, Rate, Scope
from service.database import DATABASE_FILE, open_database
from tests.api.keyed import Keyed, bearer, with_keys
from tests.api.live import Live, running, settings_for
from tests.bundles import random_bundle
from tests.waiting import soon

TENANTS = ('adapter="', 'key="')


@pytest.fixture(scope="module")
def keyed(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    with with_keys(tiny_ast_dir, tmp_path_factory.mktemp("access"), metrics_key="scraper") as service:
        yield service


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


# One's own key


def test_a_key_tells_what_it_is(keyed: Keyed) -> None:
    key = keyed.make(Scope.SPEAKERS, Scope.IDENTIFY, adapters=("acme-*",), rate=Rate(60, 60), domain="acme")
    assert keyed.ask(key, "GET", "/v1/key").json() == {
        "id": key.split("_")[1],
        "name": "",
        "scopes": ["identify", "speakers"],
        "adapters": ["acme-*"],
        "domain": "acme",
        "limits": {"rate": "60/m", "concurrency": None, "domain_mb": 10240, "domain_versions": 1000},
    }
    admin = keyed.ask(keyed.admin, "GET", "/v1/key").json()
    assert (admin["name"], admin["domain"], admin["limits"]["domain_mb"]) == ("operator", "default", None)
    assert refused(keyed.service.http.get("/v1/key")) == (401, "unauthorized")


def test_without_keys_everybody_is_anonymous(live: Live) -> None:
    told = live.http.get("/v1/key").json()
    assert (told["id"], told["adapters"], told["scopes"]) == ("anonymous", [], sorted(Scope))
    assert set(told["limits"].values()) == {None}


# The metrics


@pytest.fixture(scope="module")
def asked(keyed: Keyed, clip: bytes) -> Keyed:
    """Both tenants' adapters were asked."""
    for name in ("acme-one", "other-one"):
        assert keyed.ask(keyed.admin, "POST", f"/v1/classify?adapter={name}", content=clip).status_code == 200
    return keyed


def shown(service: Keyed, key: str) -> set[str]:
    """Which of the words that tell of tenants are in the metrics."""
    answer = service.ask(key, "GET", "/metrics")
    assert answer.status_code == 200
    assert "ipet_requests_total{" in answer.text
    return {word for word in (*TENANTS, "acme-one", "other-one") if word in answer.text}


def test_the_metrics_key_and_an_administrator_see_everything(asked: Keyed) -> None:
    for key in ("scraper", asked.admin):
        assert shown(asked, key) == {*TENANTS, "acme-one", "other-one"}


def test_a_reader_sees_its_own_adapters(asked: Keyed) -> None:
    assert shown(asked, asked.make(Scope.READ, adapters=("acme-*",))) == {'adapter="', "acme-one"}
    assert shown(asked, asked.make(Scope.READ)) == {'adapter="', "acme-one", "other-one"}
    assert shown(asked, asked.make(Scope.ADMIN, adapters=("acme-*",))) == {'adapter="', "acme-one"}


def test_who_has_no_key_to_read_sees_neither_adapters_nor_keys(asked: Keyed) -> None:
    assert shown(asked, "") == set()
    assert shown(asked, asked.make(Scope.INFER, Scope.WRITE)) == set()
    assert refused(asked.ask("nobody's", "GET", "/metrics")) == (401, "unauthorized")


def test_without_any_keys_everything_is_shown(live: Live, clip: bytes) -> None:
    assert live.http.post("/v1/classify?adapter=alpha", content=clip).status_code == 200
    assert 'adapter="alpha"' in live.http.get("/metrics").text
    foreign = live.http.get("/metrics", headers={"Origin": "https://elsewhere.example"})
    assert refused(foreign) == (403, "forbidden")


def test_a_metrics_key_alone_is_a_key_in_force(tiny_ast_dir: Path, tmp_path: Path) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data", metrics_key="m")) as service:
        assert service.http.get("/v1/adapters").status_code == 200
        assert 'key="anonymous"' in service.http.get("/metrics", headers=bearer("m")).text
        assert "key=" not in service.http.get("/metrics").text
        assert service.http.get("/metrics", headers=bearer("n")).status_code == 401


# Limits and pins


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/adapters/missing", 404), ("/v1/adapters/other-one", 404), ("/v1/adapters/x/pin", 403)]
)
def test_refused_calls_count_against_the_rate(keyed: Keyed, path: str, status: int) -> None:
    key = keyed.make(Scope.READ, adapters=("acme-*",), rate=Rate(2, 3600))
    method = "POST" if status == 403 else "GET"
    assert [keyed.ask(key, method, path).status_code for _ in range(3)] == [status, status, 429]


def test_a_refused_call_gives_its_place_back(keyed: Keyed) -> None:
    key = keyed.make(Scope.READ, adapters=("acme-*",), concurrency=1)
    for path, status in (("/v1/adapters/other-one", 404), ("/v1/adapters/x/pin", 403), ("/v1/adapters/acme-one", 200)):
        assert keyed.ask(key, "POST" if status == 403 else "GET", path).status_code == status


def test_only_an_administrator_ends_a_pin(keyed: Keyed, tmp_path: Path) -> None:
    writer = keyed.make(Scope.WRITE, Scope.READ)
    assert keyed.publish(tmp_path, "acme-pinned", writer).status_code == 201
    assert keyed.ask(keyed.admin, "POST", "/v1/adapters/acme-pinned/pin").json()["pinned"] is True
    assert keyed.publish(tmp_path, "acme-pinned", writer, seed=2).status_code == 201  # live moves away from it
    for method, path in (
        ("POST", "acme-pinned@1/unload"),
        ("POST", "acme-pinned@1/unpin"),
        ("DELETE", "acme-pinned/versions/1"),
        ("DELETE", "acme-pinned"),
    ):
        assert refused(keyed.ask(writer, method, f"/v1/adapters/{path}")) == (403, "forbidden"), path
    version = keyed.ask(writer, "GET", "/v1/adapters/acme-pinned").json()["versions"][0]
    assert (version["state"], version["pinned"]) == ("resident", True)
    assert keyed.ask(writer, "POST", "/v1/adapters/acme-pinned@2/unload").status_code == 200
    assert keyed.ask(keyed.admin, "POST", "/v1/adapters/acme-pinned@1/unload").json()["pinned"] is False
    assert keyed.ask(writer, "DELETE", "/v1/adapters/acme-pinned").status_code == 204


def test_a_domain_has_its_quota_and_an_administrator_none(tiny_ast_dir: Path, tmp_path: Path) -> None:
    with with_keys(tiny_ast_dir, tmp_path, max_domain_versions=2) as service:
        acme, other = (service.make(Scope.WRITE, domain=domain) for domain in ("acme", "other"))
        uploads = [service.publish(tmp_path, "mine", acme, seed=seed) for seed in (1, 2, 3)]
        assert [answer.status_code for answer in uploads] == [201, 201, 507]
        assert refused(uploads[2]) == (507, "storage_full")
        assert "acme holds 2 of 2 versions" in uploads[2].json()["detail"]
        assert service.publish(tmp_path, "mine", other, seed=3).status_code == 201
        assert service.publish(tmp_path, "mine", service.admin, seed=4).status_code == 201
        (found,) = service.ask(service.admin, "GET", "/v1/adapters?domain=other").json()["adapters"]
        assert [one["domain"] for one in found["versions"]] == ["acme", "acme", "other", "default"]
        assert service.ask(service.admin, "GET", "/v1/adapters?domain=elsewhere").json()["adapters"] == []
        assert service.ask(acme, "DELETE", "/v1/adapters/mine/versions/1").status_code == 204
        assert service.publish(tmp_path, "mine", acme, seed=5).status_code == 201


# What arrives, and what lies on the disk


@pytest.mark.parametrize("path", ["/v1/adapters", "/healthz", "/metrics", "/v2/health/live", "/nowhere"])
def test_two_authorization_headers_are_400(keyed: Keyed, path: str) -> None:
    address = urlsplit(keyed.service.url)
    lines = [f"GET {path} HTTP/1.1", f"Host: {address.netloc}", "Connection: close"]
    lines += [f"authorization: Bearer {keyed.admin}", f"Authorization: Bearer {keyed.admin}"]
    with socket.create_connection((str(address.hostname), address.port or 0), 10) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code": "bad_http"' in answer


def open_to_others(directory: Path) -> list[str]:
    paths = (directory, *directory.rglob("*"))
    return [str(path) for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077]


def test_nobody_else_on_the_machine_reads_the_data(keyed: Keyed) -> None:
    data_dir = keyed.service.context.settings.data_dir
    with open_database(data_dir).write():
        assert list(data_dir.glob("registry.sqlite-wal")), "also of a database in use"
        assert list(data_dir.glob("objects/*/adapter_model.safetensors"))
        assert open_to_others(data_dir) == []


def test_what_an_older_release_left_open_is_closed(tiny_ast_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_ast_dir, tmp_path / "data")
    with running(settings) as service:
        service.publish(tmp_path, "mine")
    (settings.data_dir / "registry.sqlite-wal").touch()
    for path in (settings.data_dir, *settings.data_dir.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with running(settings) as service:
        assert service.http.get("/v1/adapters/mine").status_code == 200
        assert open_to_others(settings.data_dir) == []


@pytest.mark.parametrize("how", ["begun anew", "emptied"])
def test_a_lost_database_lets_nobody_in(tiny_ast_dir: Path, tmp_path: Path, how: str) -> None:
    """As when the file is moved away and some command looks there: an anonymous DELETE was answered 204 by that."""
    settings = settings_for(tiny_ast_dir, tmp_path / "data")
    table = KeyTable(open_database(settings.data_dir))
    _, admin = table.create("", Grant(frozenset({Scope.ADMIN})))
    with running(settings) as service:
        files = random_bundle(tmp_path, service.backbone, "digits")
        parts = {"config": files.config, "weights": files.weights}
        made = service.http.post("/v1/adapters/digits/versions", files=parts, headers=bearer(str(admin)))
        assert made.status_code == 201
        assert "degraded" not in service.http.get("/readyz").json()
        if how == "emptied":
            with open_database(settings.data_dir).write() as connection:
                connection.exec_driver_sql("DELETE FROM api_keys")
        else:
            for path in settings.data_dir.glob(f"{DATABASE_FILE}*"):
                path.rename(tmp_path / path.name)
            KeyTable(open_database(settings.data_dir))
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            assert service.http.delete("/v1/adapters/digits").status_code == 401
            time.sleep(0.1)
        soon(lambda: "degraded" in service.http.get("/readyz").json(), 20)
        ready = service.http.get("/readyz")
        assert ready.status_code == 200
        assert ("1 of the keys" if how == "emptied" else "stored keys cannot be read") in ready.json()["degraded"]
        assert service.http.get("/v1/adapters/digits", headers=bearer(str(admin))).status_code == 200
