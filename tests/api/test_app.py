"""Around the routes: start-up, headers, metrics, pages, the API's description."""

import json
import posixpath
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from service.api.app import ROUTERS
from service.api.context import PLACES, Runtime
from service.api.opening import open_runtime
from service.api.problems import KINDS, MEDIA_TYPE
from service.settings import Settings
from service.telemetry import Telemetry
from tests.api.live import Live, running, settings_for
from tests.waiting import soon

ROOT = Path(__file__).parents[2]
METRICS = (
    *("requests_total", "request_seconds", "decode_seconds", "queue_seconds", "inference_seconds", "batch_rows"),
    *("batch_adapters", "adapter_loads_total", "adapter_load_seconds", "adapters_resident"),
    *("adapter_requests_total", "adapter_seconds", "slots", "slots_used", "queue_audio_seconds"),
    *("adapter_evictions_total", "build_info"),
)


@contextmanager
def loading(settings: Settings) -> Iterator[tuple[Live, threading.Event]]:
    """A service that loads its backbone once the event is set, at the end at the latest."""
    go_on = threading.Event()

    def slow(settings: Settings, telemetry: Telemetry) -> Runtime:
        go_on.wait(120)
        return open_runtime(settings, telemetry)

    with running(settings, slow, wait=False) as service:
        try:
            yield service, go_on
        finally:
            go_on.set()


def test_answers_while_the_backbone_is_loading(tiny_ast_dir: Path, tmp_path: Path) -> None:
    with loading(settings_for(tiny_ast_dir, tmp_path / "data")) as (service, go_on):
        assert service.http.get("/healthz").json() == {"status": "ok"}
        for method, path in (("GET", "/readyz"), ("GET", "/v1/backbone"), ("POST", "/v1/classify?adapter=a")):
            answer = service.http.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready"), path
        go_on.set()
        soon(lambda: service.http.get("/readyz").status_code == 200, 60)
        assert service.http.get("/readyz").json() == {"status": "ready"}


def test_a_failed_start_is_told(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "nothing", tmp_path / "data")
    with pytest.raises(Exception, match="nothing"), running(settings):
        pass


def test_stops_while_the_backbone_is_loading(tiny_ast_dir: Path, tmp_path: Path) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data"), wait=False) as service:
        assert service.http.get("/healthz").status_code == 200


def test_backbone(live: Live) -> None:
    answer = live.http.get("/v1/backbone").json()
    assert answer == {
        "name": live.backbone.name,
        "model_type": "audio-spectrogram-transformer",
        "fingerprint": live.backbone.fingerprint,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "parameters": live.backbone.parameters,
        "device": "cpu",
        "dtype": "float32",
    }
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", answer["fingerprint"])


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/console/../settings.py", 404, "not_found"),
        ("GET", "/console/none.js", 404, "not_found"),
        ("GET", "/v1/adapters/%2F", 404, "not_found"),
        ("DELETE", "/v1/classify", 405, "method_not_allowed"),
    ],
)
def test_unknown_paths_are_problems(live: Live, method: str, path: str, status: int, code: str) -> None:
    answer = live.http.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == MEDIA_TYPE


def test_unexpected_errors_tell_nothing(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(live.context.runtime.registry, "record", fail)
    answer = live.http.get("/v1/adapters/alpha")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert "x-request-id" in answer.headers


def test_request_ids(live: Live) -> None:
    assert live.http.get("/healthz", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    strange = live.http.get("/healthz", headers={"X-Request-Id": "no spaces <b>"}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", strange)


@pytest.mark.parametrize("path", ["/", "/docs", "/console/console.js", "/openapi.json", "/v1/adapters", "/nowhere"])
def test_safe_headers(live: Live, path: str) -> None:
    headers = live.http.get(path).headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
    assert ("microphone=(self)" if path == "/" else "microphone=()") in headers["permissions-policy"]
    assert headers["cache-control"] == ("no-cache" if path in ("/", "/docs", "/console/console.js") else "no-store")
    assert "server" not in headers


def test_no_other_origin_is_let_in(live: Live) -> None:
    """Neither a preflight nor a plain request of another origin gets a header that would let its page read."""
    ask = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    for method, path in (("OPTIONS", "/v1/classify"), ("GET", "/v1/adapters"), ("GET", "/healthz")):
        answer = live.http.request(method, path, headers=ask)
        assert not [name for name in answer.headers if name.startswith("access-control-")], path


def test_only_origins_that_are_listed_are_let_in(tiny_ast_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_ast_dir, tmp_path / "data", cors_origins="https://app.example,http://localhost:3000")
    with loading(settings) as (service, _):
        ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,if-none-match"}
        for origin in settings.cors_origins:
            allowed = service.http.options("/v1/classify", headers=ask | {"Origin": origin})
            assert allowed.status_code == 200
            assert allowed.headers["access-control-allow-origin"] == origin
            assert "access-control-allow-credentials" not in allowed.headers
            listed = service.http.get("/v1/adapters", headers={"Origin": origin})
            assert (listed.status_code, listed.headers["access-control-allow-origin"]) == (503, origin)
            assert "RateLimit" in listed.headers["access-control-expose-headers"]
        for origin in ("https://evil.example", "https://app.example.evil.example", "null"):
            refused = service.http.options("/v1/classify", headers=ask | {"Origin": origin})
            assert refused.status_code == 400
            assert "access-control-allow-origin" not in refused.headers
            assert service.http.get("/v1/adapters", headers={"Origin": origin}).status_code == 403


@pytest.mark.parametrize("origin", ["*", "null", "app.example", "https://app.example/", "https://*.example", "file://"])
def test_origins_are_named_exactly(origin: str) -> None:
    with pytest.raises(ValueError, match="origin"):
        Settings(cors_origins=origin)  # type: ignore[arg-type]


def test_metrics(live: Live) -> None:
    live.http.get("/v1/adapters/does-not-exist")
    live.http.get("/nowhere/at/all")
    answer = live.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    missing = [name for name in METRICS if f"\n# TYPE ipet_{name} " not in answer.text]
    assert not missing
    assert 'ipet_requests_total{code="404",route="/v1/adapters/{name}"}' in answer.text
    assert 'route="unmatched"' in answer.text
    assert "does-not-exist" not in answer.text
    assert "/nowhere" not in answer.text


def test_metrics_wait_for_a_thread_only_where_they_are_many(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as taken:
        for _ in range(PLACES):
            taken.enter_context(live.context.scrapes.place())
        monkeypatch.setattr("service.telemetry.SMALL", 100_000)  # whatever other tests asked of this service
        assert live.http.get("/metrics").status_code == 200
        monkeypatch.setattr("service.telemetry.SMALL", 0)
        assert live.http.get("/metrics").status_code == 429
    assert live.http.get("/metrics").status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_need_no_other_host(live: Live, path: str) -> None:
    page = live.http.get(path)
    assert page.headers["content-type"].startswith("text/html")
    pages = [page.text]
    links = re.findall(r'(?:src|href)="(?!#)([^"]+)"', page.text)
    for link in links:  # which grows by what the scripts import
        assert link.startswith("/"), link
        answer = live.http.get(link)
        assert answer.status_code == 200, link
        pages.append(answer.text)
        imported = re.findall(r'^import .*"(\.\.?/.+)";$', answer.text, flags=re.MULTILINE)
        links += [
            to
            for name in imported
            if (to := posixpath.normpath(posixpath.join(posixpath.dirname(link), name))) not in links
        ]
    assert "/console/api.js" in links
    for text in pages:
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
        assert "innerHTML" not in text


def test_files_of_the_pages_are_sent_once(live: Live) -> None:
    tags = set()
    for accepted in ("identity", "gzip"):
        asked = {"Accept-Encoding": accepted}
        first = live.http.get("/console/views/try.js", headers=asked)
        assert first.headers.get("content-encoding", "identity") == accepted
        assert first.text == (ROOT / "service/console/views/try.js").read_text()
        again = live.http.get("/console/views/try.js", headers=asked | {"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
        tags.add(first.headers["etag"])
    assert len(tags) == 2
    for example in (ROOT / "service/console/examples").iterdir():
        assert live.http.get(f"/console/examples/{example.name}").content == example.read_bytes()
        assert example.read_bytes() == (ROOT / "adapters/examples" / example.name).read_bytes()


def test_openapi_lists_every_route(live: Live) -> None:
    described = live.http.get("/openapi.json").json()
    routes = [r for router in ROUTERS for r in router.routes if isinstance(r, APIRoute) and r.include_in_schema]
    assert len(routes) >= 20
    for route in routes:
        operation = described["paths"][route.path][min(route.methods).lower()]
        assert operation["description"], route.path
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                assert list(answer["content"]) == [MEDIA_TYPE], route.path
                assert {KINDS[code].status for code in re.findall(r"`(\w+)`", answer["description"])} == {int(status)}
    assert "HTTPValidationError" not in json.dumps(described)


def test_openapi_references_resolve(live: Live) -> None:
    described = live.http.get("/openapi.json").json()
    names = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described))
    assert {"Problem", "ScoreRequest", "ClassifyAnswer"} <= set(names) <= described["components"]["schemas"].keys()


def test_openapi_describes_the_bodies(live: Live) -> None:
    paths = live.http.get("/openapi.json").json()["paths"]
    classify = paths["/v1/classify"]["post"]["requestBody"]["content"]
    assert {"application/octet-stream", "multipart/form-data"} <= classify.keys()
    assert "application/json" in paths["/v1/score"]["post"]["requestBody"]["content"]
    upload = paths["/v1/adapters/{name}/versions"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert upload["required"] == ["config", "weights"]
    assert paths["/v1/classify"]["post"]["security"] == [{"key": []}]
    assert "security" not in paths["/healthz"]["get"]
