"""What is no good to enrol, verify or identify somebody by, and what is answered to it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.audio.decode import DecodeLimits, decode
from service.model.spec import TaskType
from tests.api.desk import ANN, BRIAN, DIGIT, SILENCE, SPEECH, Desk
from tests.api.live import Live
from tests.api.test_inference import parts
from tests.synthesis import encode, tone

VOICE = decode(ANN[0], DecodeLimits()).samples
TWO = np.concatenate([VOICE, decode(BRIAN, DecodeLimits()).samples])
MUSIC = sum(tone(3.0, hertz) for hertz in (220.0, 277.2, 329.6)) / 3
HEARD = {"accept", "reject"}


@pytest.fixture(scope="module")
def people(service: Live, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """`known` is enrolled by `voice` and by a version of `moved` that is not live any more; `half` is pending."""
    directory, desk = tmp_path_factory.mktemp("inputs"), Desk(service.http)
    service.publish(directory, "moved", task=TaskType.VERIFICATION, seed=1, **SPEECH)
    for adapter in ("voice", "moved"):
        desk.enrol("known", ANN[0], adapter=adapter)
    service.publish(directory, "moved", task=TaskType.VERIFICATION, seed=2, **SPEECH)
    desk.enrol("half", DIGIT)
    return desk


@pytest.mark.parametrize(
    ("speaker", "adapter", "clip", "expected"),
    [
        pytest.param("nobody-here", "voice", ANN[1], "speaker_not_enrolled", id="unknown speaker"),
        pytest.param("half", "voice", ANN[1], "speaker_not_enrolled", id="pending"),
        pytest.param("known", "alpha", ANN[1], "wrong_task", id="an adapter for something else"),
        pytest.param("known", "nothing", ANN[1], "unknown_adapter", id="no adapter"),
        pytest.param("known", "moved", ANN[1], "voiceprint_stale", id="live has moved"),
        pytest.param("known", "voice", SILENCE, "not_enough_speech", id="silence"),
        pytest.param("known", "voice", encode(MUSIC.astype(np.float32)), "not_enough_speech", id="music"),
        pytest.param("known", "voice", encode(VOICE[8_000:12_800]), "not_enough_speech", id="0.3 s"),
        pytest.param("known", "voice", encode(VOICE[:300]), "bad_audio", id="20 ms"),
        pytest.param("known", "voice", encode(np.tile(VOICE, 200)[: 600 * 16_000]), "audio_too_long", id="10 min"),
        pytest.param("known", "voice", encode(TWO), HEARD, id="two people"),
        pytest.param("known", "voice", b"", "invalid_request", id="nothing"),
        pytest.param("known", "voice", b"RIFF of nothing", "bad_audio", id="no audio"),
    ],
)
def test_a_decision_or_a_code(people: Desk, speaker: str, adapter: str, clip: bytes, expected: Any) -> None:
    answer = people.http.post(f"/v1/speakers/{speaker}/verify?adapter={adapter}", content=clip).json()
    told = answer.get("decision", answer.get("code"))
    assert told in (expected if isinstance(expected, set) else {expected})
    if told == "not_enough_speech":
        added = people.enrol("scarce", clip)["enrolments"][0]
        assert added["speech_seconds"] < 1.0
        found = people.ask("POST", "/identify?adapter=voice", content=clip)
        assert (found["decision"], found["candidates"]) == ("not_enough_speech", [])


def test_two_people_in_one_enrolment_are_told(service: Live, people: Desk, tmp_path: Path) -> None:
    """An adapter whose calibration takes all that is not alike for two people."""
    strict = SPEECH | {"calibration": {"slope": 1e6, "intercept": -0.9999e6}}
    service.publish(tmp_path, "strict", task=TaskType.VERIFICATION, **strict)
    both = people.ask("POST", "/pair-of/enrolments?adapter=strict", 201, files=parts(ANN[0], BRIAN))
    assert ["several_voices" in one["warnings"] for one in both["enrolments"]].count(True) >= 1
    assert both["status"] == "enrolled"  # a warning changes nothing
