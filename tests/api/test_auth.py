"""Keys: who may infer, who may write; every route says which."""

from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from service.api.app import ROUTERS
from service.api.auth import Scope, authorise, is_loopback, refuse_foreign_pages
from service.errors import Forbidden, Unauthorized
from service.settings import Settings
from tests.api.live import running, settings_for

ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
INFERENCE = ("/v1/classify", "/v1/embed", "/v1/score", "/v1/huggingface/{adapter}")
INFERENCE += ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
KEYS = Settings(inference_keys="one,two", admin_keys="root")  # type: ignore[arg-type]


def scope_of(route: APIRoute) -> Scope | None:
    scopes = [getattr(depends.dependency, "scope", None) for depends in route.dependencies]
    return scopes[0] if len(scopes) == 1 else None


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{min(route.methods)} {route.path}")
def test_every_route_declares_one_scope(route: APIRoute) -> None:
    scope = scope_of(route)
    assert scope is not None, f"{route.path} must declare OPEN, INFER or ADMIN"
    if scope is Scope.OPEN:
        assert not route.path.startswith("/v1/")
        assert route.methods == {"GET"}
    elif scope is Scope.INFER:
        assert route.methods == {"GET"} or route.path in INFERENCE


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{min(route.methods)} {route.path}")
def test_no_body_is_read_before_the_key(route: APIRoute) -> None:
    """FastAPI reads a declared body whole, without limit, before any dependency; so no route declares one."""
    assert route.body_field is None


@pytest.mark.parametrize("header", [None, "", "one", "Basic one", "Bearer", "Bearer  ", "Bearer three", "Bearer on"])
def test_no_good_key(header: str | None) -> None:
    with pytest.raises(Unauthorized):
        authorise(KEYS, header, Scope.INFER)


@pytest.mark.parametrize("header", ["Bearer one", "bearer two", "Bearer root"])
def test_any_key_infers(header: str) -> None:
    authorise(KEYS, header, Scope.INFER)


def test_only_admin_keys_write() -> None:
    authorise(KEYS, "Bearer root", Scope.ADMIN)
    with pytest.raises(Forbidden):
        authorise(KEYS, "Bearer one", Scope.ADMIN)
    with pytest.raises(Forbidden):  # inference keys alone do not open the writes to anyone
        authorise(Settings(inference_keys=("one",)), "Bearer one", Scope.ADMIN)


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


def test_keys_over_http(tiny_ast_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_ast_dir, tmp_path / "data", inference_keys="one", admin_keys="root")
    with running(settings) as service:
        for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/"):
            assert service.http.get(path).status_code == 200, path
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


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
