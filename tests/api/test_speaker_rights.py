"""Consent, opting out, expiry, export, deletion; retries, changes at the same time, and whose speakers they are."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.access.keys import Scope
from service.model.spec import TaskType
from tests.api.desk import ANN, CONSENT, DIGIT, SPEECH, Desk
from tests.api.keyed import Keyed, with_keys
from tests.api.live import Live, running, settings_for
from tests.api.test_inference import parts
from tests.waiting import soon

# Consent, opting out, expiry


def test_consent_and_expiry_are_kept_and_changed(desk: Desk) -> None:
    made = desk.ask("PUT", "/pat", json={"consent": CONSENT, "expires": "30d"})
    assert made["consent"] == CONSENT
    assert (made["status"], made["adapters"]) == ("pending", [])
    assert datetime.fromisoformat(made["expires"]) - datetime.fromisoformat(made["used"]) == timedelta(days=30)
    assert desk.ask("PUT", "/pat")["consent"] == CONSENT
    changed = desk.ask("PUT", "/pat", json={"expires": None, "consent": {"by": "Al"}})
    assert (changed["expires"], changed["consent"]["by"], changed["consent"]["text"]) == (None, "Al", "")
    assert abs(datetime.fromisoformat(changed["consent"]["at"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert desk.ask("PUT", "/pat", json={"consent": None})["consent"] is None


@pytest.mark.parametrize(
    "body",
    [
        *[{"expires": "soon"}, {"expires": "-1d"}, {"consent": {}}, {"consent": {"by": ""}}, {"consent": "yes"}, []],
        *[{"consent": {"by": "Jo", "at": "yesterday"}}, {"consent": {"by": "a\0"}}, {"name": "Ann"}],
        *[{"consent": {"by": " \t"}}, {"consent": {"by": "Jo", "at": "0001-01-01T00:00:00+14:00"}}],
        {"consent": {"by": "Jo", "at": "9999-12-31T23:59:59-14:00"}},
    ],
)
def test_what_cannot_be_put(desk: Desk, body: Any) -> None:
    assert desk.refused("PUT", "/unput", 422, json=body) == "invalid_request"
    assert desk.refused("GET", "/unput", 404) == "unknown_speaker"


def test_without_consent_nobody_is_enrolled_where_it_is_required(tiny_ast_dir: Path, tmp_path: Path) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data", require_consent=True)) as service:
        service.publish(tmp_path, "voice", task=TaskType.VERIFICATION, **SPEECH)
        desk = Desk(service.http)
        assert desk.enrol("kim", ANN[0], status=409)["code"] == "consent_required"
        desk.ask("PUT", "/kim")
        assert desk.enrol("kim", ANN[0], status=409)["code"] == "consent_required"
        desk.ask("PUT", "/kim", json={"consent": CONSENT})
        assert desk.enrol("kim", ANN[0])["status"] == "enrolled"


def test_who_opts_out_stays_out_until_they_opt_in(desk: Desk) -> None:
    desk.enrol("leaver", ANN[0])
    for _ in range(2):
        told = desk.ask("POST", "/leaver/opt-out")
        assert (told["status"], told["adapters"]) == ("opted_out", [])
    assert desk.enrol("leaver", ANN[0], status=409)["code"] == "speaker_opted_out"
    assert desk.ask("DELETE", "/leaver", 204) is None
    assert desk.enrol("leaver", ANN[0], status=409)["code"] == "speaker_opted_out"
    assert desk.ask("GET", "/leaver")["status"] == "opted_out"
    assert desk.ask("POST", "/leaver/opt-in")["status"] == "pending"
    assert desk.enrol("leaver", ANN[0])["status"] == "enrolled"
    assert desk.ask("POST", "/stranger/opt-out")["status"] == "opted_out"
    assert desk.verify("stranger")["decision"] == "speaker_opted_out"
    assert desk.ask("POST", "/unheard-of/opt-in")["status"] == "pending"


def test_voiceprints_that_are_not_used_expire(tiny_ast_dir: Path, tmp_path: Path) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data")) as service:
        service.publish(tmp_path, "voice", task=TaskType.VERIFICATION, **SPEECH)
        desk, store = Desk(service.http), service.context.runtime.speakers
        desk.ask("PUT", "/once", json={"expires": "10d"})
        desk.enrol("once", ANN[0])
        store._now = lambda: datetime.now(UTC) + timedelta(days=9)
        assert desk.verify("once")["decision"] in ("accept", "reject")
        store._now = lambda: datetime.now(UTC) + timedelta(days=18)
        assert desk.ask("GET", "/once")["status"] == "enrolled"
        store._now = lambda: datetime.now(UTC) + timedelta(days=20)
        assert desk.verify("once")["decision"] == "voiceprint_expired"
        store.sweep(timedelta(days=365))
        assert desk.verify("once")["decision"] == "voiceprint_expired"
        assert desk.ask("GET", "/once/export")["enrolments"] == []
        assert desk.enrol("once", ANN[0])["status"] == "enrolled"


# Reading, exporting, deleting


def test_lists_come_in_pages(tiny_ast_dir: Path, tmp_path: Path) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data")) as service:
        service.publish(tmp_path, "voice", task=TaskType.VERIFICATION, **SPEECH)
        desk = Desk(service.http)
        assert desk.ask("GET", "") == {"speakers": [], "next": None}
        for name in ("d", "B", "a"):
            desk.ask("PUT", f"/{name}")
        desk.enrol("c", ANN[0])
        desk.ask("POST", "/e/opt-out")
        whole = [one["speaker"] for one in desk.ask("GET", "")["speakers"]]
        assert sorted(whole) == ["B", "a", "c", "d", "e"]
        pages: list[list[str]] = []
        after: str | None = ""
        while after is not None:
            page = desk.ask("GET", "", params={"limit": 2, "after": after})
            pages.append([one["speaker"] for one in page["speakers"]])
            after = page["next"]
        assert [len(page) for page in pages] == [2, 2, 1]
        assert [name for page in pages for name in page] == whole
        for status, names in {
            "pending": {"B", "a", "d"},
            "enrolled": {"c"},
            "opted_out": {"e"},
            "stale": set(),
        }.items():
            found = desk.ask("GET", "", params={"status": status, "adapter": "voice"})["speakers"]
            assert {one["speaker"] for one in found} == names
        for query in ("limit=0", "limit=1001", "status=gone", "after=" + "x" * 129, "after=%00"):
            assert desk.refused("GET", f"?{query}", 422) == "invalid_request"


def test_an_export_holds_all_there_is(desk: Desk) -> None:
    desk.ask("PUT", "/all", json={"consent": CONSENT, "expires": "52w"})
    desk.enrol("all", *ANN)
    desk.verify("all")
    told = desk.ask("GET", "/all/export")
    assert (told["domain"], told["speaker"], told["consent"]) == ("default", "all", CONSENT)
    embeddings = desk.http.post("/v1/embed?adapter=voice", files=parts(*ANN)).json()["results"]
    assert len(told["enrolments"]) == 2
    for enrolment, embedding in zip(told["enrolments"], embeddings, strict=True):
        np.testing.assert_allclose(enrolment["embedding"], embedding["embedding"], atol=1e-5)
        assert (enrolment["adapter"], enrolment["version"]) == ("voice", 1)
    assert [use["action"] for use in told["uses"]] == ["put", "enrol", "verify", "export"]
    assert told["uses"][2]["outcome"] in ("accept", "reject")
    assert {use["actor"] for use in told["uses"]} == {"anonymous"}
    assert desk.refused("GET", "/nobody/export", 404) == "unknown_speaker"


def test_what_is_deleted_is_gone(service: Live, desk: Desk) -> None:
    desk.ask("PUT", "/goner-4711", json={"consent": CONSENT | {"text": "the goner's own words"}})
    desk.enrol("goner-4711", ANN[0])
    desk.verify("goner-4711")
    needles = [b"goner-4711", b"the goner's own words"]
    directory = service.context.settings.data_dir
    assert all(traces(directory, needle) for needle in needles)
    assert desk.ask("DELETE", "/goner-4711", 204) is None
    assert desk.refused("DELETE", "/goner-4711", 404) == "unknown_speaker"
    assert desk.refused("GET", "/goner-4711", 404) == "unknown_speaker"
    assert desk.verify("goner-4711")["decision"] == "speaker_not_enrolled"
    assert not any(traces(directory, needle) for needle in needles)
    assert desk.enrol("goner-4711", DIGIT)["enrolments"][0]["id"] == 1


def traces(directory: Path, needle: bytes) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_file() and needle in path.read_bytes()]


@pytest.mark.parametrize("name", ["identify", "jobs", ".x", "a%20b", "a" * 129, "%C3%A4"])
def test_ids_that_cannot_be(desk: Desk, name: str) -> None:
    for method, path in (
        ("PUT", ""),
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/opt-out"),
        ("POST", "/verify?adapter=voice"),
    ):
        if name in ("identify", "jobs") and not path:  # a path of its own
            assert desk.refused(method, f"/{name}", 405) == "method_not_allowed"
        else:
            assert desk.refused(method, f"/{name}{path}", 422) == "invalid_request"


def test_parameters_that_a_call_does_not_know_are_named(desk: Desk) -> None:
    for method, path in (("PUT", "/x"), ("GET", ""), ("GET", "/x"), ("POST", "/x/verify"), ("DELETE", "/x")):
        told = desk.ask(method, f"{path}?adapter=voice&treshold=1" if "verify" in path else f"{path}?treshold=1", 422)
        assert told["code"] == "invalid_request"
        assert "query.treshold" in told["detail"]
    twice = desk.ask("POST", "/x/verify?adapter=voice&adapter=voice", 422, content=ANN[0])
    assert (twice["code"], "adapter is given twice" in twice["detail"]) == ("invalid_request", True)


# At the same time, and again


def test_a_retry_is_answered_as_the_first_try_was(desk: Desk) -> None:
    key = {"Idempotency-Key": "first"}
    first = desk.enrol("retry", ANN[0], headers=key)
    again = desk.http.post("/v1/speakers/retry/enrolments?adapter=voice", files=parts(ANN[0]), headers=key)
    assert (again.status_code, again.json(), again.headers["idempotency-replayed"]) == (201, first, "true")
    assert len(desk.ask("GET", "/retry")["adapters"][0]["enrolments"]) == 1
    assert desk.enrol("retry", ANN[1], headers=key, status=422)["code"] == "invalid_request"
    assert desk.enrol("another", ANN[0], headers=key, status=422)["code"] == "invalid_request"
    gone = {"Idempotency-Key": "gone"}
    for _ in range(2):
        assert desk.ask("DELETE", "/retry", 204, headers=gone) is None
    assert desk.enrol("retry", ANN[0], headers=key, status=409)["code"] == "conflict"  # it must not come back
    assert desk.refused("GET", "/retry", 404) == "unknown_speaker"
    for path in ("/retry/opt-out", "/retry/opt-in"):
        for _ in range(2):
            desk.ask("POST", path, headers={"Idempotency-Key": path})
    assert desk.refused("PUT", "/retry", 422, headers={"Idempotency-Key": "a b"}) == "invalid_request"


def test_changes_of_one_person_at_once_are_one_after_another(service: Live) -> None:
    def act(at: int) -> tuple[str, int]:
        with httpx.Client(base_url=service.url, timeout=60) as http:
            kind = ("enrol", "enrol", "verify", "delete")[at % 4]
            path = {"enrol": "/enrolments?adapter=voice", "verify": "/verify?adapter=voice", "delete": ""}[kind]
            method = "DELETE" if kind == "delete" else "POST"
            return kind, http.request(method, f"/v1/speakers/busy{path}", content=ANN[0]).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(act, range(24)))
    allowed = {"enrol": {201, 409}, "verify": {200}, "delete": {204, 404}}
    assert all(status in allowed[kind] for kind, status in answers), answers
    desk = Desk(service.http)
    desk.enrol("busy", ANN[0])
    told = desk.ask("GET", "/busy")["adapters"][0]
    numbers = [one["id"] for one in told["enrolments"]]
    assert numbers == sorted(set(numbers))
    assert told["speech_seconds"] == pytest.approx(sum(one["speech_seconds"] for one in told["enrolments"]))


# Whose they are


@pytest.fixture(scope="module")
def keyed(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    directory = tmp_path_factory.mktemp("speakers")
    with with_keys(tiny_ast_dir, directory) as keyed:
        yield keyed


def test_a_speaker_is_of_its_domain(keyed: Keyed) -> None:
    def desk(*scopes: Scope, **limits: Any) -> Desk:
        return Desk(keyed.service.http, keyed.make(*scopes, **limits))

    acme, other = (desk(Scope.SPEAKERS, domain=name) for name in ("acme", "other"))
    acme.ask("PUT", "/ann", json={"consent": CONSENT})
    acme.enrol("ann", ANN[0], adapter="acme-voice")
    assert other.refused("GET", "/ann", 404) == "unknown_speaker"
    assert other.refused("DELETE", "/ann", 404) == "unknown_speaker"
    assert other.refused("GET", "/ann/export", 404) == "unknown_speaker"
    assert other.ask("GET", "")["speakers"] == []
    assert other.verify("ann", query="adapter=acme-voice")["decision"] == "speaker_not_enrolled"
    other.ask("POST", "/ann/opt-out")
    assert acme.verify("ann", query="adapter=acme-voice")["decision"] in ("accept", "reject")
    other.ask("DELETE", "/ann", 204)
    assert acme.ask("GET", "/ann")["status"] == "enrolled"
    admin = Desk(keyed.service.http, keyed.admin)
    assert admin.refused("GET", "/ann", 404) == "unknown_speaker"
    assert admin.ask("GET", "/ann?domain=acme")["consent"] == CONSENT
    assert [one["speaker"] for one in admin.ask("GET", "?domain=acme")["speakers"]] == ["ann"]
    assert admin.refused("GET", "?domain=A", 422) == "invalid_request"
    for path in ("/ann?domain=acme", "?domain=acme"):
        assert other.refused("GET", path, 403) == "forbidden"
    assert acme.ask("GET", "/ann?domain=acme")["speaker"] == "ann"
    for one in (desk(Scope.INFER, Scope.READ, Scope.WRITE, domain="acme"), Desk(keyed.service.http)):
        status, code = (403, "forbidden") if one.key else (401, "unauthorized")
        for method, path in (("GET", ""), ("GET", "/ann"), ("PUT", "/ann"), ("DELETE", "/ann"), ("GET", "/ann/export")):
            assert one.refused(method, path, status) == code
    bound = desk(Scope.SPEAKERS, domain="acme", adapters=("other-*",))
    assert bound.refused("POST", "/ann/verify?adapter=acme-voice", 404, content=ANN[0]) == "unknown_adapter"
    assert bound.ask("GET", "/ann")["adapters"] == []
    used = acme.ask("GET", "/ann/export")["uses"]
    assert {use["actor"] for use in used} == {acme.key.split("_")[1]}
    exported = bound.ask("GET", "/ann/export")
    assert (exported["consent"], exported["enrolments"]) == (CONSENT, [])
    assert {use["adapter"] for use in exported["uses"]} == {None}


def test_no_log_line_names_a_speaker(service: Live, desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        desk.ask("PUT", "/secretive-person", json={"consent": CONSENT})
        desk.enrol("secretive-person", ANN[0])
        desk.verify("secretive-person")
        desk.refused("GET", "/secretive-person/enrolments", 405)
        desk.ask("DELETE", "/secretive-person", 204)
        metrics = service.http.get("/metrics").text  # before which the last answer is logged
    ours = [json.dumps(vars(record), default=str) for record in caplog.records if record.name.startswith("service")]
    assert len(ours) >= 5
    assert not [line for line in ours if "secretive" in line]
    assert "secretive" not in metrics


def test_another_server_on_the_same_database_sees_it_at_once(tiny_ast_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_ast_dir, tmp_path / "data")
    with running(settings) as one, running(settings) as two:
        one.publish(tmp_path, "voice", task=TaskType.VERIFICATION, **SPEECH)
        first, second = Desk(one.http), Desk(two.http)
        first.enrol("ann", ANN[0])
        soon(lambda: "voice" in two.http.get("/v1/adapters").text, 20)
        assert second.verify("ann")["score"] == pytest.approx(first.verify("ann")["score"], abs=1e-4)
        second.ask("POST", "/ann/opt-out")
        assert first.verify("ann")["decision"] == "speaker_opted_out"
