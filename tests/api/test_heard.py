"""What of a clip was heard: the seconds that windows covered, and how long somebody speaks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.audio.decode import decode
from service.model.spec import TaskType
from tests.api.live import Live
from tests.api.test_inference import ONE_WINDOW, classify, parts
from tests.synthesis import encode, noise

EXAMPLES = Path(__file__).parents[2] / "adapters" / "examples"
SPEAKER = {"task": TaskType.VERIFICATION, "input": ONE_WINDOW | {"windows": None}}


@pytest.mark.parametrize(
    ("windows", "hop", "heard"),
    [
        (1, None, [[0.0, 0.64]]),
        (2, None, [[0.0, 0.64], [2.34, 2.98]]),
        (3, None, [[0.0, 0.64], [1.17, 1.81], [2.34, 2.98]]),
        (5, None, [[0.0, 2.98]]),  # they overlap
        (None, 64, [[0.0, 2.98]]),
        (None, 100, [[0.0, 0.64], [1.0, 1.64], [2.0, 2.98]]),
    ],
)
def test_heard_is_what_the_windows_covered(
    live: Live, tmp_path: Path, windows: int | None, hop: int | None, heard: list[list[float]]
) -> None:
    clip = encode(noise(3.0))
    name = f"heard-{windows}-{hop}".lower()
    for task in (TaskType.CLASSIFICATION, TaskType.VERIFICATION):
        input = ONE_WINDOW | {"windows": windows, "hop_frames": hop}
        live.publish(tmp_path, f"{name}-{task.name.lower()}", task=task, input=input)
    results = [
        classify(live, clip, f"adapter={name}-classification")["results"][0],
        live.http.post(f"/v1/embed?adapter={name}-verification", content=clip).json()["results"][0],
    ]
    for result in results:
        np.testing.assert_allclose(result["heard"], heard, atol=0.006)  # int() of a start may round down a frame


def test_a_short_clip_is_heard_whole(live: Live) -> None:
    assert classify(live, encode(noise(0.5)))["results"][0]["heard"] == [[0.0, 0.5]]


def test_below_its_own_bound_an_answer_is_unknown(live: Live, clip: bytes, tmp_path: Path) -> None:
    live.publish(tmp_path, "bound", seed=5)
    best = classify(live, clip, "adapter=bound")["results"][0]["labels"][0]["score"]
    for name, bound in (("sure", best - 0.01), ("unsure", best + 0.01), ("older", "half")):
        live.publish(tmp_path, name, seed=5, reject_below=bound)
    told = {name: classify(live, clip, f"adapter={name}&top_k=1")["results"][0] for name in ("sure", "unsure", "older")}
    assert told["unsure"]["unknown"] is True
    assert "unknown" not in told["sure"]
    assert "unknown" not in told["older"]  # a word of its own in a bundle of version 1


def test_windows_are_averaged_or_the_highest_counts(live: Live, tmp_path: Path) -> None:
    clip = encode(noise(3.0, seed=4))
    for name in ("mean", "max"):
        live.publish(tmp_path, f"of-{name}", seed=6, input=ONE_WINDOW | {"windows": 4, "aggregate": name})
    (mean, highest) = classify(live, clip, "adapter=of-mean&adapter=of-max&top_k=0&windows=true")["results"]
    windows = [{one["label"]: one["score"] for one in window["labels"]} for window in mean["windows"]]
    for result, rule in ((mean, np.mean), (highest, np.max)):
        for one in result["labels"]:
            assert one["score"] == pytest.approx(rule([window[one["label"]] for window in windows]), abs=1e-5)
    tensors = live.http.post(
        "/v2/models/of-max/infer",
        json={
            "inputs": [
                {"name": "audio", "shape": [1, 48_000], "datatype": "FP32", "data": noise(3.0, seed=4).ravel().tolist()}
            ]
        },
    ).json()["outputs"]
    (scores,) = [tensor["data"] for tensor in tensors if tensor["name"] == "scores"]
    assert sorted(scores) == pytest.approx(sorted(one["score"] for one in highest["labels"]), abs=1e-4)


@pytest.fixture(scope="module")
def speaker(live: Live, tmp_path_factory: pytest.TempPathFactory) -> str:
    live.publish(tmp_path_factory.mktemp("bundles"), "listener", speech={}, **SPEAKER)
    return "listener"


def trial(live: Live, adapter: str, enrolment: Sequence[bytes], test: bytes) -> Any:
    files = parts(*enrolment, name="enrolment") + parts(test, name="test")
    answer = live.http.post(f"/v1/score?adapter={adapter}", files=files)
    assert answer.status_code == 200, answer.text
    return answer.json()


SECOND = 16_000
NOBODY = {
    "silence": np.zeros(3 * SECOND),
    "constant": np.full(3 * SECOND, 0.25),
    "impulse": np.eye(1, 3 * SECOND, SECOND)[0],
    "one bit": np.random.default_rng(1).choice([-1, 1], 3 * SECOND) / 32_768,
    "25 ms": noise(0.025)[:, 0],
}


def spoken(name: str) -> bytes:
    return (EXAMPLES / name).read_bytes()


@pytest.mark.parametrize("name", NOBODY)
def test_where_nobody_speaks_nobody_is_verified(live: Live, speaker: str, name: str) -> None:
    clip = encode(NOBODY[name].astype(np.float32), codec="pcm_f32le")
    for enrolment, test in (
        ([clip], clip),
        ([spoken("speaker-ann-1.ogg")], clip),
        ([clip], spoken("speaker-ann-1.ogg")),
    ):
        answer = trial(live, speaker, enrolment, test)
        assert answer["decision"] == "not_enough_speech"
        assert "score" in answer
        assert answer["score"] is None
        assert min(answer["speech_seconds"].values()) == 0.0
        assert answer["threshold"] == 0.25
        assert "log_likelihood_ratio" not in answer


def test_real_speech_is_judged(live: Live, speaker: str) -> None:
    clips = [spoken("speaker-ann-1.ogg"), spoken("speaker-ann-2.opus")]
    answer = trial(live, speaker, clips, spoken("speaker-brian-1.mp3"))
    assert answer["decision"] in ("accept", "reject")
    assert answer["decision"] == ("accept" if answer["score"] >= answer["threshold"] else "reject")
    assert answer["speech_seconds"]["enrolment"] == pytest.approx(6.3, abs=0.4)
    assert answer["speech_seconds"]["test"] == pytest.approx(2.9, abs=0.3)


def test_the_manifest_says_how_much_is_needed(live: Live, speaker: str, tmp_path: Path) -> None:
    digit = spoken("digit-seven.m4a")  # half a second of speech
    live.publish(tmp_path, "brief", speech={"verify_seconds": 0.3}, **SPEAKER)
    live.publish(tmp_path, "thorough", speech={"enrol_seconds": 9.0, "verify_seconds": 3.2}, **SPEAKER)
    live.publish(tmp_path, "silent-on-it", speech=None, **SPEAKER)
    live.publish(tmp_path, "wrong-on-it", speech={"verify_seconds": "none"}, **SPEAKER)
    assert trial(live, "brief", [digit], digit)["decision"] == "accept"
    for adapter in (speaker, "thorough", "silent-on-it", "wrong-on-it"):
        assert trial(live, adapter, [digit], digit)["decision"] == "not_enough_speech"
    assert trial(live, "thorough", [spoken("speaker-ann-1.ogg")] * 2, spoken("speaker-ann-2.opus"))["score"] is None
    # clips of one side count together
    assert trial(live, speaker, [digit] * 3, spoken("speaker-ann-1.ogg"))["score"] is not None


def test_speech_never_changes_an_embedding(live: Live, speaker: str) -> None:
    silence = encode(NOBODY["silence"].astype(np.float32))
    clips = [silence, spoken("speaker-ann-1.ogg")]
    answer = live.http.post(f"/v1/embed?adapter={speaker}", files=parts(*clips)).json()
    silent, voice = answer["results"]
    assert silent["speech_seconds"] == 0.0
    assert voice["speech_seconds"] == pytest.approx(3.4, abs=0.3)
    for result in (silent, voice):
        assert np.linalg.norm(result["embedding"]) == pytest.approx(1.0, abs=1e-5)
    vectors = {"enrolment": [silent["embedding"]], "test": silent["embedding"]}
    told = live.http.post(f"/v1/score?adapter={speaker}", json=vectors).json()
    assert (told["decision"], told["speech_seconds"]) == ("accept", None)


def test_speech_between_the_windows_verifies_nobody(live: Live, tmp_path: Path) -> None:
    """As silence beside two voices was: what was embedded is the silence before either of them."""
    needed = {"verify_seconds": 0.1}
    live.publish(tmp_path, "first-seconds", task=TaskType.VERIFICATION, input=ONE_WINDOW, speech=needed)
    voices = (decode(spoken(f"speaker-{name}")).samples for name in ("ann-1.ogg", "brian-1.mp3"))
    enrolment, test = (encode(np.concatenate((np.zeros(2 * SECOND, np.float32), voice))) for voice in voices)
    answer = trial(live, "first-seconds", [enrolment], test)
    assert (answer["decision"], answer["score"]) == ("not_enough_speech", None)
