"""One voice against many, and voiceprints that callers keep, over HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.access.keys import Scope
from service.model.spec import TaskType
from tests.api.desk import ANN, BRIAN, CONSENT, DIGIT, SILENCE, SPEECH, Desk
from tests.api.keyed import Keyed, bearer, with_keys
from tests.api.live import Live, running, settings_for
from tests.api.test_inference import parts

SHARP = {"calibration": {"slope": 1e5, "intercept": -99_900.0}}  # only what is all but the same is somebody's


def identify(desk: Desk, clip: bytes, query: str = "adapter=voice", status: int = 200) -> Any:
    return desk.ask("POST", f"/identify?{query}", status, content=clip)


@pytest.fixture(scope="module")
def town(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Desk]]:
    """`ann` and `brian` are enrolled, `pat` is pending, `gone` has opted out."""
    directory = tmp_path_factory.mktemp("town")
    with running(settings_for(tiny_ast_dir, directory / "data")) as service:
        service.publish(directory, "voice", task=TaskType.VERIFICATION, **SPEECH | SHARP)
        service.publish(directory, "bare", task=TaskType.VERIFICATION, calibration=None, **SPEECH)
        desk = Desk(service.http)
        desk.enrol("ann", ANN[0])
        desk.enrol("brian", BRIAN, BRIAN)
        desk.enrol("pat", DIGIT)
        desk.enrol("gone", ANN[1])
        desk.ask("POST", "/gone/opt-out")
        yield service, desk


def test_somebody_is_found_and_a_stranger_is_unknown(town: tuple[Live, Desk]) -> None:
    _, desk = town
    told = identify(desk, ANN[0])
    assert (told["decision"], told["searched"], told["extrapolated"]) == ("identified", 2, True)
    assert [one["speaker"] for one in told["candidates"]] == ["ann", "brian"]
    best, second = (one["score"] for one in told["candidates"])
    assert best == pytest.approx(1.0, abs=1e-5)
    assert told["margin"] == pytest.approx(best - second)
    assert best >= told["threshold"] > 0.25  # not the threshold of one against one
    assert told["threshold_name"] == "fpir_1e-2"
    assert told["candidates"][0]["log_likelihood_ratio"] == pytest.approx(1e5 * best - 99_900)
    stranger = identify(desk, ANN[1])
    assert stranger["decision"] == "unknown"
    assert stranger["candidates"][0]["score"] < stranger["threshold"]
    uses = desk.ask("GET", "/ann/export")["uses"]
    assert uses[-2]["action"] == "identify"
    assert uses[-2]["outcome"] == "identified"


def test_fewer_are_searched_and_shown_as_asked(town: tuple[Live, Desk]) -> None:
    _, desk = town
    one = identify(desk, ANN[0], "adapter=voice&top_k=1")
    assert [len(one["candidates"]), one["searched"]] == [1, 2]
    assert one["margin"] is not None
    among = identify(desk, ANN[0], "adapter=voice&among=brian&among=pat&among=nobody&among=gone")
    assert (among["decision"], among["searched"], among["margin"]) == ("unknown", 1, None)
    assert [one["speaker"] for one in among["candidates"]] == ["brian"]
    assert among["threshold"] < one["threshold"]  # fewer strangers to be taken for
    nobody = identify(desk, ANN[0], "adapter=voice&among=nobody")
    assert (nobody["decision"], nobody["candidates"], nobody["searched"]) == ("unknown", [], 0)


def test_a_threshold_that_no_score_reaches_is_told(town: tuple[Live, Desk], tmp_path: Path) -> None:
    service, desk = town
    assert "threshold_unreachable" not in identify(desk, ANN[0])["warnings"]
    flat = SPEECH | {"calibration": {"slope": 4.0, "intercept": -0.5}}
    service.publish(tmp_path, "flat", task=TaskType.VERIFICATION, **flat)
    desk.enrol("ann", ANN[0], adapter="flat")
    told = identify(desk, ANN[0], "adapter=flat")
    assert (told["decision"], told["searched"], told["warnings"]) == ("unknown", 1, ["threshold_unreachable"])
    assert told["candidates"][0]["score"] < 1.0001 < told["threshold"]


def test_without_speech_nobody_is_searched(town: tuple[Live, Desk]) -> None:
    _, desk = town
    for clip in (SILENCE, DIGIT):
        told = identify(desk, clip)
        assert (told["decision"], told["candidates"], told["searched"]) == ("not_enough_speech", [], 0)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("adapter=bare", 422, "invalid_request"),  # nothing to make a threshold of
        ("adapter=nothing", 404, "unknown_adapter"),
        ("adapter=voice&top_k=0", 422, "invalid_request"),
        ("adapter=voice&among=a/b", 422, "invalid_request"),
        ("adapter=voice&threshold=0.5", 422, "invalid_request"),  # never one of a caller's
        ("adapter=voice&domain=A", 422, "invalid_request"),
    ],
)
def test_what_cannot_be_searched(town: tuple[Live, Desk], query: str, status: int, code: str) -> None:
    assert identify(town[1], ANN[0], query, status)["code"] == code


def test_one_clip_at_a_time(town: tuple[Live, Desk]) -> None:
    assert town[1].ask("POST", "/identify?adapter=voice", 422, files=parts(*ANN))["code"] == "invalid_request"


# Sealed voiceprints, and whose all of it is


def sealed(desk: Desk, clip: bytes, adapter: str = "voice") -> str:
    answer = desk.http.post(f"/v1/embed?adapter={adapter}&sealed=true", content=clip, headers=bearer(desk.key))
    (result,) = answer.json()["results"]
    assert "embedding" not in result
    return str(result["sealed"])


def score(desk: Desk, enrolment: list[Any], test: Any, adapter: str = "voice", status: int = 200) -> Any:
    answer = desk.http.post(
        f"/v1/score?adapter={adapter}",
        json={"enrolment": enrolment, "test": test},
        headers=bearer(desk.key),
    )
    assert answer.status_code == status, answer.text
    return answer.json()


def test_a_sealed_voiceprint_scores_as_its_numbers_do(town: tuple[Live, Desk], tmp_path: Path) -> None:
    service, desk = town
    vectors = [desk.http.post("/v1/embed?adapter=voice", content=clip).json()["results"][0] for clip in (*ANN, BRIAN)]
    numbers = [one["embedding"] for one in vectors]
    seals = [sealed(desk, clip) for clip in (*ANN, BRIAN)]
    expected = score(desk, numbers[:2], numbers[2])
    for enrolment, test in ((seals[:2], seals[2]), ([numbers[0], seals[1]], seals[2]), (seals[:2], numbers[2])):
        told = score(desk, enrolment, test)
        assert told["score"] == pytest.approx(expected["score"], abs=1e-5)
        assert told["speech_seconds"] is None
    assert sealed(desk, ANN[0]) != seals[0]
    for wrong in (seals[0][:-4], seals[0] + "A", "nonsense", "", "a" * 2**16):
        assert score(desk, [wrong], numbers[2], status=422)["code"] == "invalid_request"
    service.publish(tmp_path, "moved", task=TaskType.VERIFICATION, seed=1)
    old = sealed(desk, ANN[0], "moved")
    service.publish(tmp_path, "moved", task=TaskType.VERIFICATION, seed=2)
    assert "version" in score(desk, [old], old, "moved", 422)["detail"]
    assert score(desk, [old], old, "moved@1")["score"] == pytest.approx(1.0)
    wrong_task = desk.http.post("/v1/embed?adapter=voice&sealed=maybe", content=ANN[0])
    assert wrong_task.status_code == 422


@pytest.fixture(scope="module")
def keyed(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    with with_keys(tiny_ast_dir, tmp_path_factory.mktemp("identify")) as keyed:
        files = keyed.service.publish
        assert files
        yield keyed


NAMES = st.sampled_from(["ann", "brian", "zelda-of-other"])
CLIPS = st.sampled_from([ANN[0], ANN[1], BRIAN, DIGIT, SILENCE])
ACTIONS = st.tuples(
    st.sampled_from(["enrol", "opt-out", "opt-in", "delete", "put", "verify", "identify"]), NAMES, CLIPS
)


def act(desk: Desk, action: str, name: str, clip: bytes) -> None:
    """One call of a domain, whatever comes of it."""
    method = {"delete": "DELETE", "put": "PUT"}.get(action, "POST")
    path = {"enrol": f"{name}/enrolments", "identify": action, "delete": name, "put": name}.get(
        action, f"{name}/{action}"
    )
    hears = action in ("enrol", "verify", "identify")
    asked = {"params": {"adapter": "acme-voice"}, "files": parts(clip)} if hears else {}
    assert desk.http.request(method, f"/v1/speakers/{path}", headers=bearer(desk.key), **asked).status_code < 500


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ACTIONS, min_size=1, max_size=6))
def test_nothing_that_is_answered_or_logged_depends_on_another_domain(
    keyed: Keyed, caplog: pytest.LogCaptureFixture, actions: list[tuple[str, str, bytes]]
) -> None:
    """The same calls of one domain are answered and logged the same, whatever the other has or does."""
    scopes = (Scope.SPEAKERS, Scope.IDENTIFY, Scope.INFER, Scope.READ)
    acme, other = (Desk(keyed.service.http, keyed.make(*scopes, domain=name)) for name in ("acme", "other"))
    adapter = "adapter=acme-voice"
    act(acme, "delete", "ann", b"")
    acme.ask("PUT", "/ann", json={"consent": CONSENT})
    acme.enrol("ann", ANN[0], adapter="acme-voice")

    def answers() -> list[Any]:
        keyed.service.http.get("/healthz")  # which is not logged: what was answered before is by now
        caplog.clear()
        told = [
            identify(acme, ANN[0], adapter),
            identify(acme, BRIAN, adapter),
            acme.verify("ann", ANN[0], adapter),
            acme.verify("brian", BRIAN, adapter),
            acme.ask("GET", "?status=enrolled"),
            acme.ask("GET", "/ann"),
            acme.refused("GET", "/brian", 404),
        ]
        for one in (*told[4]["speakers"], told[5]):
            del one["used"]
        keyed.service.http.get("/healthz")
        return [told, [record.getMessage() for record in caplog.records if record.name.startswith("service")]]

    with caplog.at_level("INFO"):
        before = answers()
        assert before[0][0]["searched"] == 1
        for action in actions:
            act(other, *action)
        keyed.service.http.get("/healthz")
        assert not [record for record in caplog.records if "zelda" in str(vars(record)) and "service" in record.name]
        assert answers() == before
    theirs = sealed(other, ANN[0], "acme-voice")
    assert "domain" in score(acme, [theirs], theirs, "acme-voice", 422)["detail"]
    for desk in (acme, other):
        metrics = keyed.ask(desk.key, "GET", "/metrics").text
        assert "ipet_requests_total" in metrics
        assert "zelda" not in metrics


def test_one_against_many_needs_a_scope_of_its_own(keyed: Keyed) -> None:
    without = Desk(keyed.service.http, keyed.make(Scope.SPEAKERS, domain="acme"))
    assert identify(without, ANN[0], "adapter=acme-voice", 403)["code"] == "forbidden"
    assert identify(without, ANN[0], "adapter=acme-voice&among=ann")["searched"] in (0, 1)
    alone = Desk(keyed.service.http, keyed.make(Scope.IDENTIFY, domain="acme"))
    assert identify(alone, ANN[0], "adapter=acme-voice&among=ann", 403)["code"] == "forbidden"
