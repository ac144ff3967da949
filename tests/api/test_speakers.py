"""Speakers over HTTP: enrolment and verification."""

from pathlib import Path

import numpy as np
import pytest

from service.model.spec import TaskType
from tests.api.desk import ANN, BRIAN, DIGIT, SILENCE, SPEECH, Desk
from tests.api.live import Live
from tests.api.test_inference import parts
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


@pytest.mark.parametrize("asked", ["far_1e-2", "1.01", "nan", "inf", "high", "0x1"])
def test_thresholds_that_are_none(desk: Desk, asked: str) -> None:
    refused = desk.verify("judged", query=f"adapter=voice&threshold={asked}", status=422)
    assert refused["code"] == "invalid_request"
    assert "default, eer, far_1e-3" in refused["detail"]


def test_thresholds_of_normalised_scores_do_not_judge_cosines(service: Live, desk: Desk, tmp_path: Path) -> None:
    normed = SPEECH | {"normalisation": {"type": "as-norm", "top": 300}, "thresholds": {"eer": 3.1}}
    service.publish(tmp_path, "normed", task=TaskType.VERIFICATION, **normed)
    desk.enrol("normed", ANN[0], adapter="normed")
    assert desk.verify("normed", query="adapter=normed")["threshold_name"] == "default"
    assert desk.verify("normed", query="adapter=normed&threshold=eer", status=422)["code"] == "invalid_request"


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
