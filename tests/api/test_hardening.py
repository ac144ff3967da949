"""What a request may not be: too much of anything, named like a path; and what the log may not hold."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.access.key_table import KeyTable
from service.access.keys import Grant, Scope, Token
from service.database import open_database
from service.registry.manifest import is_alias, is_name
from tests.api.live import Live, running, settings_for
from tests.cli.process import serving
from tests.synthesis import encode, noise

HOSTILE_NAMES = [
    *("..", "../..", "..%2f..%2fetc%2fpasswd", "a/../../b", "a\\..\\b", ".hidden", "-rf", "~root", "C:\\x", "con:"),
    *(
        "a\0b",
        "a\nb",
        "a\r\nSet-Cookie: x=y",
        "a\x1b[2J",
        "\u202e",
        "a b",
        "A",
        "ä",
        "a" * 65,
        "%00",
        "%2e%2e",
        "{name}",
    ),
]
WEIGHTS_HEAD = safetensors.torch.save({"a": torch.zeros(5_000_000, dtype=torch.float16)})[:-10_000_000]


@pytest.fixture(scope="module")
def strict(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Small limits: 3 clips, 2 adapters, 2 s of audio in a request, 1 MB bodies."""
    directory = tmp_path_factory.mktemp("strict")
    limits = {"max_clips": 3, "max_adapters": 2, "max_request_seconds": 2.0, "max_body_bytes": 1_000_000}
    with running(settings_for(tiny_ast_dir, directory / "data", **limits)) as service:
        service.publish(directory, "alpha")
        yield service


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def ask(service: Live, *seconds: float, query: str = "adapter=alpha") -> httpx.Response:
    parts = [("audio", ("a.wav", encode(noise(length)))) for length in seconds]
    return service.http.post(f"/v1/classify?{query}", files=parts)


def test_audio_of_a_request_is_bounded_in_total(strict: Live) -> None:
    assert ask(strict, 0.9, 0.9).status_code == 200
    together = ask(strict, 0.9, 0.9, 0.9)
    assert refused(together) == (413, "audio_too_long")
    assert "together" in together.json()["detail"]
    assert together.json()["clip"] in (0, 1, 2)
    assert refused(ask(strict, 2.5)) == (413, "audio_too_long")
    assert strict.context.budget.held == 0


def test_counts_are_bounded(strict: Live) -> None:
    assert refused(ask(strict, *[0.1] * 4)) == (422, "invalid_request")
    assert refused(ask(strict, 0.1, query="&".join(["adapter=alpha"] * 3))) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/classify?adapter=alpha"),
        ("POST", "/v1/adapters/alpha/versions"),
        ("PUT", "/v1/adapters/alpha/aliases/canary"),
        ("POST", "/v1/huggingface/alpha"),
        ("POST", "/v2/models/alpha/infer"),
    ],
)
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
def test_bodies_are_bounded_everywhere(strict: Live, method: str, path: str, announced: bool) -> None:
    """Whether or not its length is announced; PUT and JSON bodies, too."""
    kind, begun = "application/json", b'{"'
    if path.endswith("versions"):
        part = b'--x\r\nContent-Disposition: form-data; name="weights"\r\n\r\n'
        kind, begun = "multipart/form-data; boundary=x", part + WEIGHTS_HEAD
    headers = {"Content-Type": kind} | ({"Content-Length": str(len(begun) + 5_000_000)} if announced else {})
    answer = strict.http.request(method, path, content=iter([begun, *[bytes(100_000)] * 50]), headers=headers)
    assert refused(answer) == (413, "payload_too_large")
    assert strict.context.budget.held == 0


def test_a_part_with_a_head_of_its_own_size_is_refused(strict: Live) -> None:
    for head in ("X: " + "y" * 100_000, "\r\n".join(f"X-{number}: y" for number in range(1000))):
        disposition = 'Content-Disposition: form-data; name="audio"'
        body = f"--x\r\n{head}\r\n{disposition}\r\n\r\nz\r\n--x--\r\n".encode()
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = strict.http.post("/v1/classify?adapter=alpha", content=body, headers=kind)
        assert refused(answer) == (422, "invalid_request")


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_names_that_are_no_names(strict: Live, name: str) -> None:
    """Wherever a name goes: refused with a documented code, and nothing of it in a header."""
    for path in (
        "/v1/adapters/{}",
        "/v1/adapters/{}/load",
        "/v1/adapters/alpha/aliases/{}",
        "/v1/adapters/{}/versions",
    ):
        method = "GET" if path.endswith("{}") and "aliases" not in path else "POST"
        method = "PUT" if "aliases" in path else method
        parts = {"config": b"{}", "weights": b""} if path.endswith("versions") else None
        body = {"version": 1} if "aliases" in path else None
        answer = strict.http.request(method, path.format(quote(name, safe="")), files=parts, json=body)
        assert answer.status_code in (404, 405, 422), (path, answer.text)
        assert "set-cookie" not in answer.headers
        assert answer.headers["content-type"] == "application/problem+json"
    answer = ask(strict, 0.1, query=f"adapter={quote(name, safe='')}")
    assert refused(answer) == (404, "unknown_adapter")


@given(st.text(alphabet="az09._-/\\A\0\n é", max_size=66))
def test_a_name_is_no_path(name: str) -> None:
    root = Path("/registry")
    for accepted in (is_name(name), is_alias(name)):
        if accepted:
            assert name.isascii()
            assert name.isprintable()
            assert (root / name).parent == root
            assert name not in (".", "..")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(min_size=1, max_size=80))
def test_no_name_is_a_fault_of_the_service(strict: Live, name: str) -> None:
    answer = strict.http.get(f"/v1/adapters/{quote(name, safe='')}")
    assert answer.status_code in (200, 404, 405), answer.text
    if answer.status_code == 200:
        assert answer.json().get("name") == "alpha" or "adapters" in answer.json()


def test_the_log_holds_no_audio_no_embedding_and_no_key(tiny_ast_dir: Path, tmp_path: Path) -> None:
    """Secrets wherever a client can put them, then the server's whole output is searched for each."""
    table = KeyTable(open_database(tmp_path / "data"))
    _, token = table.create("", Grant(frozenset({Scope.ADMIN})))
    keys = {"inference_keys": "k-inference-7391", "admin_keys": "k-admin-2846", "metrics_key": "k-metrics-5510"}
    vector, sound = 0.7310585786300049, b"SOUND-4f1d9c"
    forged = Token.mint()
    with serving(tiny_ast_dir, tmp_path / "data", **keys) as served, ExitStack() as stack:
        http = stack.enter_context(httpx.Client(base_url=served.url, timeout=30))
        for key in (*keys.values(), str(token), str(forged), "k-unknown-1177"):
            bearer = {"Authorization": f"Bearer {key}", "Cookie": f"session={key}"}
            for path in (
                "/v1/adapters",
                f"/v1/adapters/{key}",
                f"/nowhere/{key}",
                f"/v1/adapters?key={key}",
                "/metrics",
            ):
                http.get(path, headers=bearer | {"X-Request-Id": f"id {key}"})
            http.post(f"/v1/classify?adapter={key}", content=sound, headers=bearer)
            http.post("/v1/score?adapter=x", json={"enrolment": [[vector]], "test": [vector, key]}, headers=bearer)
            http.put("/v1/adapters/x/aliases/y", json={"version": key, "vector": vector}, headers=bearer)
            parts = {"config": b'{"name": "x", "format_version": "' + sound + b'"}', "weights": sound}
            http.post("/v1/adapters/x/versions", files=parts, headers=bearer)
            http.post("/v1/classify?adapter=x", files={key: sound}, headers=bearer)
            http.get("/healthz", headers={"X": key * 2000})
        place = urlsplit(served.url)
        with socket.create_connection((place.hostname, place.port)) as raw:
            raw.sendall(f"NO HTTP {token} k-admin-2846\r\n\r\n".encode())
            raw.recv(1000)
        served.process.terminate()
        log = served.end()
    lines = [json.loads(line) for line in log.splitlines()]
    secrets = [*keys.values(), token.secret, forged.secret, "k-unknown-1177", str(vector), sound.decode()]
    assert not [secret for secret in secrets if secret in log]
    answered = [line for line in lines if line["message"] == "request" and line["route"] == "/v1/adapters"]
    assert {line.get("key") for line in answered} == {"env:inference-1", "env:admin-1", token.id, None}
    for line in answered:
        assert {"time", "level", "request_id", "method", "status", "seconds"} <= line.keys()
    assert {"uvicorn.error", "service.requests"} <= {line["logger"] for line in lines}
