"""Keys over HTTP: every route says what it asks, a tenant meets its own adapters only, limits are told."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from service.access.key_table import KeyTable
from service.access.keyring import is_loopback
from service.access.keys import Grant, Rate, Scope
from service.api.app import ROUTERS
from service.api.auth import ADAPTER_PARAMETERS, KeyRequired, Requirement, refuse_foreign_pages
from service.database import open_database
from service.errors import Forbidden
from service.settings import Settings
from tests.api.keyed import Keyed, bearer, with_keys
from tests.api.live import running, settings_for
from tests.waiting import soon

ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
KEYED = [route for route in ROUTES if any(isinstance(one.dependency, KeyRequired) for one in route.dependencies)]
ANY_KEYS = {"/v1/key", "/v1/jobs", "/v1/jobs/{job}", "/v1/jobs/{job}/result"}  # of jobs it sees those it may ask for
SCOPED = [route for route in KEYED if route.path not in ANY_KEYS or "POST" in route.methods]
PARAMETERS = re.compile(r"{(\w+)}")
NAMED = [route for route in KEYED if set(PARAMETERS.findall(route.path)) & set(ADAPTER_PARAMETERS)]
SEEN_SECONDS = 1.0  # within which a running server sees a key made or revoked


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{min(route.methods)} {route.path}")
def test_every_route_declares_one_access(route: APIRoute) -> None:
    declared = [one.dependency for one in route.dependencies if isinstance(one.dependency, Requirement)]
    assert len(declared) == 1, f"{route.path} must declare exactly one of OPEN, METRICS, INFER, READ, WRITE, ..."
    if not isinstance(declared[0], KeyRequired):
        assert not re.match("/v1/|/v2/models", route.path)
        assert route.methods == {"GET"}
    elif declared[0].scope is Scope.READ:
        assert route.methods == {"GET"} or route.path == "/v2/repository/index"  # a list that the protocol posts for
    elif declared[0].scope is Scope.INFER:
        assert route.methods == {"POST"} or route.path == "/v1/stream"  # the handshake of a WebSocket is a GET


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{min(route.methods)} {route.path}")
def test_no_body_is_read_before_the_key_is_checked(route: APIRoute) -> None:
    """FastAPI reads a declared body, whatever its size, before it runs dependencies."""
    assert route.body_field is None, f"{route.path}: read the body with service.api.bodies"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost", "ipet.localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.example.org", ""])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8000", "http://evil.example"),
        ("evil.example:8000", "http://evil.example:8000"),
        ("evil.example", None),
    ],
)
def test_without_keys_pages_of_others_are_refused(host: str, origin: str | None) -> None:
    with pytest.raises(Forbidden):
        refuse_foreign_pages(Settings(), host, origin)


@pytest.mark.parametrize(("host", "origin"), [("127.0.0.1:8000", "http://127.0.0.1:8000"), ("[::1]:8000", None)])
def test_without_keys_its_own_pages_are_answered(host: str, origin: str | None) -> None:
    refuse_foreign_pages(Settings(), host, origin)


@pytest.mark.parametrize("host", ["[", "[::", "]", "a:b:c"])
def test_a_host_that_is_no_address_is_not_loopback(host: str) -> None:
    with pytest.raises(Forbidden):
        refuse_foreign_pages(Settings(), host, None)


def test_keys_of_the_environment_over_http(tiny_ast_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_ast_dir, tmp_path / "data", inference_keys="one", admin_keys="root", metrics_key="m")
    with running(settings) as service:
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json", "/"):
            assert service.http.get(path).status_code == 200, path
        for key, status in {"m": 200, "root": 200, "": 200, "wrong": 401}.items():
            assert service.http.get("/metrics", headers=bearer(key)).status_code == status
        refused = service.http.get("/v1/adapters")
        assert refused.status_code == 401
        assert refused.json()["code"] == "unauthorized"
        assert refused.headers["www-authenticate"].startswith("Bearer")
        assert service.http.get("/v1/adapters", headers=bearer("one")).json() == {"adapters": [], "next": None}
        forbidden = service.http.delete("/v1/adapters/x", headers=bearer("one"))
        assert (forbidden.status_code, forbidden.json()["code"]) == (403, "forbidden")
        assert service.http.delete("/v1/adapters/x", headers=bearer("root")).status_code == 404
        posted = service.http.post("/v1/classify?adapter=x", content=b"x" * 1000, headers=bearer("no"))
        assert posted.status_code == 401
        assert service.http.put("/v1/adapters/x/aliases/live", content=b"{").status_code == 401


@pytest.fixture(scope="module")
def keyed(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    with with_keys(tiny_ast_dir, tmp_path_factory.mktemp("keyed")) as service:
        yield service


def test_keys_made_and_revoked_elsewhere_are_seen_within_a_second(keyed: Keyed) -> None:
    other = KeyTable(open_database(keyed.service.context.settings.data_dir))
    key, token = other.create("", Grant(frozenset({Scope.READ})))
    soon(lambda: keyed.ask(str(token), "GET", "/v1/backbone").status_code == 200, SEEN_SECONDS)
    other.revoke(key.id)
    soon(lambda: keyed.ask(str(token), "GET", "/v1/backbone").status_code == 401, SEEN_SECONDS)


@pytest.mark.parametrize("route", SCOPED, ids=lambda route: f"{min(route.methods)} {route.path}")
def test_every_other_scope_is_refused(keyed: Keyed, route: APIRoute) -> None:
    needed = next(one.dependency.scope for one in route.dependencies if isinstance(one.dependency, KeyRequired))
    others = [scope for scope in Scope if scope not in (needed, Scope.ADMIN)]
    answer = keyed.ask(keyed.make(*others), min(route.methods), path_of(route, "acme-one"))
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert str(needed) in answer.json()["detail"]


def path_of(route: APIRoute, adapter: str) -> str:
    """The route's path for one adapter; a parameter that is neither the adapter's nor its version's fails here."""
    return route.path.format(
        version=1, alias="live", speaker="ann", enrolment=1, **dict.fromkeys(ADAPTER_PARAMETERS, adapter)
    )


def test_a_job_is_seen_in_its_domain_by_who_may_ask_for_it(keyed: Keyed) -> None:
    mine = keyed.make(Scope.SPEAKERS, domain="zoo", adapters=("acme-*",))
    files = [("ann", b"no audio")]
    asked = keyed.ask(mine, "POST", "/v1/speakers/jobs?adapter=acme-voice", files=files)
    job = asked.json()["id"]
    others = {
        "another domain": keyed.make(Scope.SPEAKERS),
        "another scope": keyed.make(Scope.INFER, domain="zoo"),
        "other adapters": keyed.make(Scope.SPEAKERS, domain="zoo", adapters=("other-*",)),
    }
    for what, key in others.items():
        assert keyed.ask(key, "GET", "/v1/jobs").json()["jobs"] == [], what
        for method, path in (("GET", ""), ("GET", "/result"), ("DELETE", "")):
            answer = keyed.ask(key, method, f"/v1/jobs/{job}{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown_job"), what
    assert [one["id"] for one in keyed.ask(mine, "GET", "/v1/jobs").json()["jobs"]] == [job]
    colleague = keyed.make(Scope.SPEAKERS, domain="zoo")
    assert keyed.ask(colleague, "GET", f"/v1/jobs/{job}").status_code == 200


@pytest.fixture(scope="module")
def tenant(keyed: Keyed) -> str:
    """A key of everything but administration, bound to one tenant's adapters."""
    return keyed.make(*(scope for scope in Scope if scope is not Scope.ADMIN), adapters=("acme-*",))


def test_a_tenant_lists_its_own_adapters(keyed: Keyed, tenant: str) -> None:
    listed = [one["name"] for one in keyed.ask(tenant, "GET", "/v1/adapters").json()["adapters"]]
    assert listed == ["acme-one", "acme-voice"]
    assert len(keyed.ask(keyed.admin, "GET", "/v1/adapters").json()["adapters"]) == 4
    pages, after = [], None
    while True:
        params = {"limit": 1} | ({"after": after} if after else {})
        page = keyed.ask(tenant, "GET", "/v1/adapters", params=params).json()
        pages += [one["name"] for one in page["adapters"]]
        if (after := page["next"]) is None:
            break
    assert pages == listed


@pytest.mark.parametrize("route", NAMED, ids=lambda route: f"{min(route.methods)} {route.path}")
def test_adapters_of_others_are_as_if_they_were_not(keyed: Keyed, route: APIRoute) -> None:
    """Whatever is asked, a foreign adapter that exists and one that does not are answered alike."""
    bound = keyed.make(Scope.ADMIN, adapters=("acme-*",))
    answers = []
    for name in ("other-one", "other-two"):
        path = path_of(route, name)
        answer = keyed.ask(bound, min(route.methods), path, json={"version": 1} if "PUT" in route.methods else None)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_adapter")
        answers.append(answer.text.replace(name, "..."))
    assert answers[0] == answers[1]
    assert keyed.ask(keyed.admin, "GET", "/v1/adapters/other-one").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/classify?adapter=other-one",
        "/v1/classify?adapter=other-one@1",
        "/v1/classify?adapter=acme-one&adapter=other-one@live",
        "/v1/embed?adapter=other-voice",
        "/v1/score?adapter=other-voice",
        "/v1/huggingface/other-one",
        "/v1/huggingface/other-one@1",
        "/v2/models/other-one/infer",
        "/v2/models/other-one@live/infer",
        "/v2/models/other-one/versions/1/infer",
    ],
)
def test_a_tenant_uses_its_own_adapters_only(keyed: Keyed, tenant: str, clip: bytes, path: str) -> None:
    answer = keyed.ask(tenant, "POST", path, content=clip)
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_adapter")
    missing = keyed.ask(tenant, "POST", path.replace("other", "others"), content=clip)
    assert missing.text == answer.text.replace("other", "others")
    mine = path.replace("other", "acme").replace("&adapter=acme-one@live", "")
    if "score" not in mine and "/v2/" not in mine:  # which take no raw clip
        assert keyed.ask(tenant, "POST", mine, content=clip).status_code == 200


def test_a_tenant_uploads_under_its_own_names_only(keyed: Keyed, tenant: str, tmp_path: Path) -> None:
    assert keyed.publish(tmp_path, "acme-new", tenant).status_code == 201
    assert keyed.ask(tenant, "DELETE", "/v1/adapters/acme-new").status_code == 204
    refused = keyed.publish(tmp_path, "other-new", tenant)
    assert (refused.status_code, refused.json()["code"]) == (404, "unknown_adapter")
    assert keyed.ask(keyed.admin, "GET", "/v1/adapters/other-new").status_code == 404


def test_a_rate_is_kept_and_told(keyed: Keyed) -> None:
    key = keyed.make(Scope.READ, rate=Rate(2, 3600))
    answers = [keyed.ask(key, "GET", "/v1/backbone") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"rate";q=2;w=3600'}
    assert [answer.headers["ratelimit"].partition(";t=")[0] for answer in answers] == [
        '"rate";r=1',
        '"rate";r=0',
        '"rate";r=0',
    ]
    assert answers[2].json()["code"] == "rate_limited"
    assert 1790 <= int(answers[2].headers["retry-after"]) <= 1800
    assert keyed.ask(keyed.admin, "GET", "/v1/backbone").status_code == 200
    assert "ratelimit" not in keyed.ask(keyed.admin, "GET", "/v1/backbone").headers
    metrics = keyed.ask(keyed.admin, "GET", "/metrics").text
    key_id = key.split("_")[1]
    assert f'ipet_key_requests_total{{key="{key_id}"}} 3.0' in metrics
    assert f'ipet_key_refusals_total{{key="{key_id}",limit="rate"}} 1.0' in metrics
    assert key not in metrics


def test_paths_that_are_none_count_against_a_rate(keyed: Keyed) -> None:
    key = keyed.make(Scope.READ, rate=Rate(3, 3600))
    asked = [("GET", "/nowhere"), ("DELETE", "/v1/backbone"), ("GET", "/v1/adapters/none"), ("GET", "/nowhere")]
    assert [keyed.ask(key, *one).status_code for one in asked] == [404, 405, 404, 429]
    assert keyed.ask("wrong", "GET", "/nowhere").status_code == 404


def test_concurrency_is_kept_and_given_back(keyed: Keyed, clip: bytes) -> None:
    """One request whose body does not end holds the only place; once it is gone the next one has it."""
    key = keyed.make(Scope.INFER, concurrency=1)
    go_on = threading.Event()

    def slow() -> Iterator[bytes]:
        yield clip[:100]
        go_on.wait(30)
        yield clip[100:]

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(keyed.ask, key, "POST", "/v1/classify?adapter=acme-one", content=slow())
        used = keyed.service.context.gate._used
        soon(lambda: used.get(key.split("_")[1]) and used[key.split("_")[1]].in_flight == 1, 20)
        refused = keyed.ask(key, "POST", "/v1/classify?adapter=acme-one", content=clip)
        go_on.set()
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert refused.headers["ratelimit"] == '"concurrency";r=0'
        assert held.result().status_code == 200
    for _ in range(3):  # answered ones and refused ones give their place back
        assert keyed.ask(key, "POST", "/v1/classify?adapter=acme-one", content=clip).status_code == 200
        assert keyed.ask(key, "POST", "/v1/classify?adapter=acme-one", content=b"").status_code == 422
