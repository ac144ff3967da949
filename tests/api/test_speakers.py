"""Speakers over HTTP: enrolment and verification."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from service.model.spec import TaskType
from service.registry.bundle import BundleFiles
from service.scoring.cohort import Cohort
from tests.api.desk import ANN, BRIAN, DIGIT, SILENCE, SPEECH, Desk
from tests.api.live import Live
from tests.api.test_inference import parts
from tests.bundles import random_bundle
from tests.synthesis import encode, noise

# Enrolment


def test_a_person_is_enrolled_clip_by_clip(desk: Desk) -> None:
    first = desk.enrol("step", DIGIT)
    assert first["status"] == "pending"
    assert 0 < first["progress"] < 0.5
    assert first["needed_seconds"] == 3.0
    (one,) = first["enrolments"]
    assert (one["id"], one["warnings"]) == (1, [])
    second = desk.enrol("step", ANN[0], SILENCE)
    assert (second["status"], second["progress"]) == ("enrolled", 1.0)
    heard, unheard = second["enrolments"]
    assert heard["id"] == 2
    assert unheard == {"id": None, "speech_seconds": 0.0, "warnings": ["no_speech"]}
    assert second["speech_seconds"] == pytest.approx(first["speech_seconds"] + heard["speech_seconds"])
    told = desk.ask("GET", "/step?adapter=voice")
    assert (told["speaker"], told["status"], len(told["adapters"])) == ("step", "enrolled", 1)
    assert [item["id"] for item in told["adapters"][0]["enrolments"]] == [1, 2]


def test_a_clip_without_speech_makes_nobody(desk: Desk) -> None:
    answer = desk.enrol("mute", SILENCE)
    assert (answer["status"], answer["progress"], answer["enrolments"][0]["id"]) == ("pending", 0.0, None)
    assert desk.refused("GET", "/mute", 404) == "unknown_speaker"


def test_one_enrolment_is_removed(desk: Desk) -> None:
    desk.enrol("pair", *ANN)
    assert desk.ask("DELETE", "/pair/enrolments/1", 204) is None
    told = desk.ask("GET", "/pair")
    assert [item["id"] for item in told["adapters"][0]["enrolments"]] == [2]
    assert desk.refused("DELETE", "/pair/enrolments/1", 404) == "unknown_speaker"
    assert desk.refused("DELETE", "/nobody/enrolments/1", 404) == "unknown_speaker"
    assert desk.enrol("pair", ANN[0])["enrolments"][0]["id"] == 3  # numbers are not used again


def test_who_is_how_much_of_an_enrolment_shows_in_the_score(desk: Desk) -> None:
    desk.enrol("same", ANN[0])
    assert desk.verify("same", ANN[0])["score"] == pytest.approx(1.0, abs=1e-5)
    embeddings = [
        desk.http.post("/v1/embed?adapter=voice", files=parts(clip)).json()["results"][0] for clip in (*ANN, BRIAN)
    ]
    desk.enrol("mixed", *ANN)
    vectors = [np.array(one["embedding"]) for one in embeddings]
    seconds = [one["speech_seconds"] for one in embeddings]
    mean = seconds[0] * vectors[0] + seconds[1] * vectors[1]
    expected = float(mean @ vectors[2] / np.linalg.norm(mean))
    assert desk.verify("mixed", BRIAN)["score"] == pytest.approx(expected, abs=1e-4)


def test_the_best_of_several_references_counts_where_the_manifest_says_so(
    service: Live, desk: Desk, tmp_path: Path
) -> None:
    service.publish(tmp_path, "channels", task=TaskType.VERIFICATION, merge="best", **SPEECH)
    desk.enrol("two-phones", ANN[0], BRIAN, adapter="channels")
    for clip in (ANN[0], BRIAN):
        assert desk.verify("two-phones", clip, "adapter=channels")["score"] == pytest.approx(1.0, abs=1e-5)


# Verification


def test_clips_in_which_nobody_speaks_do_not_blur_a_voice(service: Live, desk: Desk) -> None:
    desk.enrol("clear", ANN[0])
    asked = {"files": parts(ANN[1], SILENCE, SILENCE)}
    answer = desk.ask("POST", "/clear/verify?adapter=voice", **asked)
    assert answer["score"] == pytest.approx(desk.verify("clear")["score"], abs=1e-5)


def test_a_verdict_names_what_it_rests_on(service: Live, desk: Desk) -> None:
    desk.enrol("ann", ANN[0])
    answer = desk.verify("ann")
    version = service.http.get("/v1/adapters/voice").json()["versions"][0]
    assert (answer["speaker"], answer["adapter"], answer["version"]) == ("ann", "voice", 1)
    assert answer["digest"] == version["digest"]
    assert (answer["threshold"], answer["threshold_name"]) == (0.25, "default")
    assert answer["decision"] == ("accept" if answer["score"] >= 0.25 else "reject")
    assert answer["log_likelihood_ratio"] == pytest.approx(8.0 * answer["score"] - 2.0)
    assert answer["speech_seconds"] > 1.0
    assert answer["warnings"] == []
    assert "probability" not in answer


@pytest.mark.parametrize(
    ("asked", "value", "name"),
    [
        *[("", 0.25, "default"), ("default", 0.25, "default"), ("far_1e-3", 0.9, "far_1e-3"), ("eer", -0.5, "eer")],
        *[("1.0", 1.0, None), ("-1", -1.0, None), ("0", 0.0, None)],
    ],
)
def test_thresholds(desk: Desk, asked: str, value: float, name: str | None) -> None:
    desk.enrol("judged", ANN[0])
    answer = desk.verify("judged", query="adapter=voice" + (f"&threshold={asked}" if asked else ""))
    assert (answer["threshold"], answer["threshold_name"]) == (value, name)
    assert answer["decision"] == ("accept" if answer["score"] >= value else "reject")


@pytest.mark.parametrize("asked", ["far_1e-2", "1.01", "nan", "inf", "high", "0x1", "1_0e-1"])
def test_thresholds_that_are_none(desk: Desk, asked: str) -> None:
    refused = desk.verify("judged", query=f"adapter=voice&threshold={asked}", status=422)
    assert refused["code"] == "invalid_request"
    assert "default, eer, far_1e-3" in refused["detail"]


NORMED = {
    "normalisation": {"type": "as-norm", "top": 30, "calibration": {"slope": 2.0, "intercept": -3.0}},
    "thresholds": {"eer": 3.1, "far_1e-3": -100.0},
}


def test_named_thresholds_judge_normalised_scores_where_there_are_some(
    service: Live, desk: Desk, tmp_path: Path
) -> None:
    service.publish(tmp_path, "normed", task=TaskType.VERIFICATION, **SPEECH | NORMED)
    desk.enrol("normed", ANN[0], adapter="normed")
    files = parts(*ANN)
    enrolment, test = (
        np.array(one["embedding"], np.float32)
        for one in desk.http.post("/v1/embed?adapter=normed", files=files).json()["results"]
    )
    version = service.context.runtime.registry.resolve("normed")
    rows = service.context.runtime.registry.load(version).tensors["cohort.embeddings"].numpy()
    expected = Cohort(rows, 30).normalise(float(enrolment @ test), enrolment, test)
    by_name = desk.verify("normed", query="adapter=normed&threshold=eer")
    assert by_name["score"] == pytest.approx(float(enrolment @ test), abs=1e-5)
    assert by_name["normalised_score"] == pytest.approx(expected, abs=1e-3)
    assert by_name["decision"] == ("accept" if expected >= 3.1 else "reject")
    assert by_name["log_likelihood_ratio"] == pytest.approx(2.0 * by_name["normalised_score"] - 3.0)
    assert desk.verify("normed", query="adapter=normed&threshold=far_1e-3")["decision"] == "accept"
    for query in ("", "&threshold=0.5"):  # these judge the cosine
        answer = desk.verify("normed", query=f"adapter=normed{query}")
        assert answer["decision"] == ("accept" if answer["score"] >= answer["threshold"] else "reject")
        assert answer["log_likelihood_ratio"] == pytest.approx(8.0 * answer["score"] - 2.0)
        assert answer["normalised_score"] == pytest.approx(expected, abs=1e-3)
    assert "normalised_score" not in desk.verify("judged")
    clips = {"files": [("enrolment", ("a", ANN[0])), ("test", ("b", ANN[1]))]}
    for asked in (clips, {"json": {"enrolment": [enrolment.tolist()], "test": (3 * test).tolist()}}):
        scored = desk.http.post("/v1/score?adapter=normed", **asked).json()
        assert scored["normalised_score"] == pytest.approx(expected, abs=1e-3)
        assert scored["decision"] == ("accept" if scored["score"] >= scored["threshold"] else "reject")
    assert "normalised_score" not in desk.http.post("/v1/score?adapter=voice", **clips).json()
    found = desk.ask("POST", "/identify?adapter=normed", content=ANN[0])
    assert (found["searched"], found["extrapolated"]) == (1, False)  # the cohort of 120 measures it


# Checks


def test_another_classifier_may_reject_a_voice(service: Live, desk: Desk, tmp_path: Path) -> None:
    """A classifier made here: its head answers `spoof` by its bias alone, whatever is heard."""
    labels = {"labels": ["bonafide", "spoof"]}
    for name, bias in (("passes", -20.0), ("spoof", 20.0)):
        files = random_bundle(tmp_path, service.backbone, name, **labels)
        tensors = safetensors.torch.load(files.weights)
        tensors["head.linear.weight"] *= 0.0
        tensors["head.linear.bias"] = torch.tensor([0.0, bias])
        changed = BundleFiles(files.config, safetensors.torch.save(tensors))
        assert service.upload(changed, name).status_code == 201
    for name in ("passes", "spoof"):
        check = {"adapter": name, "reject": {"label": "spoof", "above": 0.5}}
        service.publish(tmp_path, f"checked-{name}", task=TaskType.VERIFICATION, checks=[check], **SPEECH)
    desk.enrol("checked", ANN[0], adapter="checked-passes")
    desk.enrol("checked", ANN[0], adapter="checked-spoof")
    real = desk.verify("checked", ANN[0], "adapter=checked-passes")
    assert (real["decision"], real["reason"]) == ("accept", None)
    (found,) = real["checks"]
    assert (found["adapter"], found["version"], found["label"]) == ("passes", 1, "spoof")
    assert found["score"] < 0.01
    fake = desk.verify("checked", ANN[0], "adapter=checked-spoof")
    assert (fake["decision"], fake["reason"]) == ("reject", "spoof")
    assert fake["score"] == pytest.approx(1.0, abs=1e-5)
    assert fake["checks"][0]["score"] > 0.99
    assert desk.verify("checked", SILENCE, "adapter=checked-spoof")["decision"] == "not_enough_speech"
    assert desk.verify("nobody", ANN[0], "adapter=checked-spoof")["checks"] == []
    unknown = desk.ask("POST", "/identify?adapter=checked-spoof", content=ANN[0])
    assert (unknown["decision"], unknown["reason"]) == ("unknown", "spoof")
    assert unknown["candidates"][0]["speaker"] == "checked"
    unheard = desk.ask("POST", "/identify?adapter=checked-spoof", content=SILENCE)
    assert (unheard["decision"], unheard["reason"]) == ("not_enough_speech", None)
    assert "checks" not in desk.verify("judged")
    service.http.delete("/v1/adapters/spoof")  # what cannot be checked is not let through
    assert desk.verify("checked", ANN[0], "adapter=checked-spoof", 404)["code"] == "unknown_adapter"


@pytest.mark.parametrize(("adapter", "label", "status"), [("gamma", "x", 409), ("alpha", "no such", 503)])
def test_checks_that_cannot_be_made(
    service: Live, desk: Desk, tmp_path: Path, adapter: str, label: str, status: int
) -> None:
    check = {"adapter": adapter, "reject": {"label": label, "above": 0.5}}
    service.publish(tmp_path, f"check-{adapter}", task=TaskType.VERIFICATION, checks=[check], **SPEECH)
    desk.enrol("unchecked", ANN[0], adapter=f"check-{adapter}")
    assert desk.verify("unchecked", ANN[0], f"adapter=check-{adapter}", status)["code"] in (
        "wrong_task",
        "adapter_failed",
    )


def test_a_probability_needs_a_prior(service: Live, desk: Desk, tmp_path: Path) -> None:
    desk.enrol("likely", ANN[0])
    even = desk.verify("likely", query="adapter=voice&prior=0.5")
    assert even["probability"] == pytest.approx(1 / (1 + np.exp(-even["log_likelihood_ratio"])))
    rare = desk.verify("likely", query="adapter=voice&prior=0.001")
    assert rare["probability"] == pytest.approx(1 / (1 + 999 * np.exp(-rare["log_likelihood_ratio"])))
    for prior in ("0", "1", "-1", "x"):
        assert desk.verify("likely", query=f"adapter=voice&prior={prior}", status=422)["code"] == "invalid_request"
    service.publish(tmp_path, "uncalibrated", task=TaskType.VERIFICATION, calibration=None, **SPEECH)
    desk.enrol("likely", ANN[0], adapter="uncalibrated")
    assert desk.verify("likely", query="adapter=uncalibrated")["log_likelihood_ratio"] is None
    assert desk.verify("likely", query="adapter=uncalibrated&prior=0.5", status=422)["code"] == "invalid_request"


def test_what_stands_in_the_way_comes_before_what_is_heard(service: Live, desk: Desk, tmp_path: Path) -> None:
    service.publish(tmp_path, "moving", task=TaskType.VERIFICATION, seed=1, **SPEECH)
    query = "adapter=moving"

    def decision(clip: bytes) -> str:
        answer = desk.verify("mover", clip, query)
        assert answer["score"] is None
        assert answer["log_likelihood_ratio"] is None
        return str(answer["decision"])

    for clip in (SILENCE, ANN[1]):
        assert decision(clip) == "speaker_not_enrolled"  # of an id that nobody has
    desk.enrol("mover", DIGIT, adapter="moving")
    assert decision(ANN[1]) == "speaker_not_enrolled"  # pending
    desk.enrol("mover", ANN[0], adapter="moving")
    assert decision(SILENCE) == "not_enough_speech"
    assert decision(DIGIT) == "not_enough_speech"
    assert desk.verify("mover", ANN[1], query)["decision"] in ("accept", "reject")
    service.publish(tmp_path, "moving", task=TaskType.VERIFICATION, seed=2, **SPEECH)
    for clip in (SILENCE, ANN[1]):
        assert decision(clip) == "voiceprint_stale"
    assert desk.verify("mover", ANN[1], "adapter=moving@1")["decision"] in ("accept", "reject")
    assert desk.ask("GET", "/mover?adapter=moving")["status"] == "stale"
    assert desk.ask("GET", "/mover?adapter=moving@1")["status"] == "enrolled"
    desk.ask("POST", "/mover/opt-out")
    for clip in (SILENCE, ANN[1]):
        assert decision(clip) == "speaker_opted_out"


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("adapter=nothing", 404, "unknown_adapter"),
        ("adapter=voice@9", 404, "unknown_version"),
        ("adapter=alpha", 409, "wrong_task"),
        ("", 422, "invalid_request"),
    ],
)
def test_adapters_that_are_not_for_speakers(desk: Desk, query: str, status: int, code: str) -> None:
    for path in ("/ann/enrolments", "/ann/verify"):
        assert desk.refused("POST", f"{path}?{query}", status, content=ANN[0]) == code


@pytest.mark.parametrize("clip", [b"", b"no audio", encode(noise(0.01))], ids=["empty", "text", "10 ms"])
def test_what_is_no_clip(desk: Desk, clip: bytes) -> None:
    desk.enrol("bad", ANN[0])
    for path in ("enrolments", "verify"):
        code = desk.refused("POST", f"/bad/{path}?adapter=voice", 422, content=clip)
        assert code == ("bad_audio" if clip else "invalid_request")


def test_clips_are_told_to_be_clipped_quiet_or_noisy(desk: Desk, live: Live) -> None:
    from service.audio.decode import DecodeLimits, decode

    voice = decode(ANN[0], DecodeLimits()).samples
    clips = {
        "clipped": np.clip(voice * 30, -1, 1),
        "too_quiet": voice * 0.005,
        "low_snr": voice + 2 * voice.std() * np.random.default_rng(0).standard_normal(len(voice)),
    }
    for warning, samples in clips.items():
        answer = desk.enrol(f"warned-{warning}", encode(samples.astype(np.float32), codec="pcm_f32le"))
        (enrolled,) = answer["enrolments"]
        if enrolled["id"] is None:  # nobody could be heard in it
            assert warning != "clipped"
            continue
        assert warning in enrolled["warnings"]
