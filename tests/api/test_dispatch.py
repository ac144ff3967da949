"""Every path by every method: HEAD beside GET, what is allowed where, and nothing unknown in a query."""

import re
from collections import defaultdict

import httpx
import pytest
from fastapi.routing import APIRoute

from service.api.app import ROUTERS
from tests.api.live import Live

ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
GIVEN = {"name": "alpha", "model": "alpha", "adapter": "alpha", "version": "1", "alias": "live"}
PAGES = {"/console/{name:path}": "/console/console.js"}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
LENIENT = re.compile(
    r"/v1/huggingface/|/healthz|/readyz|/metrics|/v2(/health/\w+)?$|/(docs|openapi.json|favicon.ico)?$|/console/"
)


def path_of(route: APIRoute) -> str:
    """A path that the route answers."""
    return PAGES.get(route.path) or route.path.format_map(defaultdict(lambda: "1", GIVEN))


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


@pytest.mark.parametrize("route", [route for route in ROUTES if "GET" in route.methods], ids=lambda route: route.path)
def test_head_is_get_without_a_body(live: Live, route: APIRoute) -> None:
    path = path_of(route)
    got, head = live.http.get(path), live.http.head(path)
    assert got.status_code == head.status_code
    assert head.content == b""
    of_both = "content-type", "etag", "cache-control", "content-security-policy"
    assert [head.headers.get(name) for name in of_both] == [got.headers.get(name) for name in of_both]
    if path != "/metrics":  # which has changed meanwhile
        assert head.headers["content-length"] == got.headers["content-length"]
    assert live.http.get("/healthz").status_code == 200  # on the same connection: nothing of a body was left in it


def test_allow_is_complete(live: Live) -> None:
    by_path: dict[str, set[str]] = defaultdict(set)
    for route in ROUTES:
        by_path[path_of(route)] |= set(route.methods) | ({"HEAD"} if "GET" in route.methods else set())
    assert len(by_path) > 20
    for path, methods in by_path.items():
        for method in set(METHODS) - methods:
            answer = live.http.request(method, path)
            assert answer.status_code == 405
            assert set(answer.headers["allow"].split(", ")) == methods, path


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{min(route.methods)} {route.path}")
def test_an_unknown_parameter_is_named(live: Live, route: APIRoute) -> None:
    answer = live.http.request(min(route.methods), f"{path_of(route)}?topk=1", content=b"x")
    if LENIENT.match(route.path):
        assert "topk" not in answer.text
        return
    assert refused(answer) == (422, "invalid_request")
    assert "query.topk" in answer.json()["detail"]
    for known in {field.alias for field in route.dependant.query_params}:
        assert known in answer.json()["detail"]


def test_a_query_has_an_end(live: Live) -> None:
    assert refused(live.http.get("/v1/adapters?" + "&q=" * 1000)) == (422, "invalid_request")
    assert live.http.get("/v1/adapters?" + "&" * 200).status_code == 200


def test_what_is_taken_once_is_given_once(live: Live) -> None:
    answer = live.http.get("/v1/adapters?q=a&q=b")
    assert refused(answer) == (422, "invalid_request")
    assert "q is given twice" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("", "query.adapter: Field required"),
        ("adapter=alpha&top_k=-1", "query.top_k: Input should be greater than or equal to 0, got '-1'"),
        ("adapter=alpha&top_k=x", "query.top_k"),
        ("adapter=alpha&windows=perhaps", "query.windows"),
    ],
)
def test_parameters_are_validated(live: Live, clip: bytes, query: str, fault: str) -> None:
    answer = live.http.post(f"/v1/classify?{query}", content=clip)
    assert refused(answer) == (422, "invalid_request")
    assert fault in answer.json()["detail"]


def test_a_version_in_the_path_is_a_number(live: Live) -> None:
    answer = live.http.get("/v1/adapters/alpha/versions/x/config")
    assert refused(answer) == (422, "invalid_request")
    assert "path.version" in answer.json()["detail"]
