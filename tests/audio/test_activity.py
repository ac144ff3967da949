"""Where somebody speaks: in speech, and in nothing else."""

import threading
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.audio.activity import STRETCH_SAMPLES, SpeechActivity, speech_stretches
from service.audio.decode import decode

EXAMPLES = Path(__file__).parents[2] / "adapters" / "examples"
VOICES = sorted(EXAMPLES.glob("speaker-*"))
ROOM = np.random.default_rng(0)
SECOND = 16_000
NOBODY = {
    "silence": np.zeros(3 * SECOND),
    "a constant": np.full(3 * SECOND, 0.5),
    "an impulse": np.eye(1, 3 * SECOND, SECOND)[0],
    "noise of one bit": ROOM.choice([-1, 0, 1], 3 * SECOND) / 32_768,
    "loud noise of one bit": ROOM.choice([-1.0, 1.0], 3 * SECOND),
    "noise": ROOM.normal(0, 0.2, 3 * SECOND),
    "a tone": 0.5 * np.sin(np.arange(3 * SECOND) * 0.17),
    "clicks": (np.arange(3 * SECOND) % 4_000 == 0).astype(float),
}


@pytest.fixture(scope="module")
def activity() -> SpeechActivity:
    return SpeechActivity()


def voice(path: Path) -> NDArray[np.float32]:
    return decode(path.read_bytes()).samples


@pytest.mark.parametrize("name", NOBODY)
def test_nobody_speaks(activity: SpeechActivity, name: str) -> None:
    assert activity.speech(NOBODY[name].astype(np.float32)).seconds == 0.0


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.flac")) + VOICES, ids=lambda path: path.stem)
def test_examples(activity: SpeechActivity, path: Path) -> None:
    samples = voice(path)
    seconds, spoken = activity.speech(samples).seconds, path.stem.startswith(("speaker", "digit", "keyword"))
    assert seconds > 0.5 * len(samples) / SECOND if spoken else seconds == 0.0
    assert seconds <= len(samples) / SECOND
    assert activity.speech(samples[:400]).seconds == 0.0


def test_speech_counts_and_the_silence_around_it_does_not(activity: SpeechActivity) -> None:
    samples = voice(VOICES[0])
    alone = activity.speech(samples).seconds
    silence = np.zeros(5 * SECOND, np.float32)
    assert activity.speech(np.concatenate((silence, samples, silence))).seconds == pytest.approx(alone, abs=0.3)
    assert activity.speech(samples * np.float32(0.03)).seconds == pytest.approx(alone, abs=0.5)


def test_only_speech_that_is_heard_counts(activity: SpeechActivity) -> None:
    silence, samples = np.zeros(8 * SECOND, np.float32), voice(VOICES[0])
    clip = np.concatenate((silence, samples, silence))
    end = len(clip) / SECOND
    assert activity.speech(clip, [(0.0, 3.0), (end - 3.0, end)]).seconds == 0.0
    half = activity.speech(clip, [(6.0, 8.0 + len(samples) / SECOND / 2), (7.0, 8.5)]).seconds
    assert 0.2 < half < 0.8 * activity.speech(clip).seconds
    assert activity.speech(clip, [(0.0, end)]).seconds == activity.speech(clip).seconds


def test_it_is_the_packages_own_network(activity: SpeechActivity) -> None:
    package = find_spec("silero_vad")
    assert package is not None
    assert package.origin is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.jit.load(Path(package.origin).parent / "data" / "silero_vad.jit")  # type: ignore[no-untyped-call]
    samples = np.resize(voice(VOICES[1]), 17 * SECOND)  # longer than a block
    with torch.inference_mode(), torch.jit.optimized_execution(False):  # it would be compiled for the one run
        expected = theirs.audio_forward(torch.from_numpy(samples)[None], SECOND)[0].numpy()
    np.testing.assert_allclose(activity.probabilities(samples), expected, atol=1e-3)


def test_many_threads_share_one(activity: SpeechActivity) -> None:
    clips = [voice(path) for path in VOICES[:4]]
    expected = [activity.speech(clip).seconds for clip in clips]
    found: list[list[float]] = []
    threads = [
        threading.Thread(target=lambda: found.append([activity.speech(clip).seconds for clip in clips]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_a_second_takes_five_milliseconds_at_most(activity: SpeechActivity) -> None:
    samples = np.tile(voice(VOICES[0]), 3)[: 10 * SECOND]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken = []
        for _ in range(5):
            started = time.thread_time()
            activity.speech(samples)
            taken.append(time.thread_time() - started)
    finally:
        torch.set_num_threads(threads)
    assert min(taken) / 10 < 0.005


@pytest.mark.parametrize(
    ("probabilities", "stretches"),
    [
        ([0.0] * 20, 0),
        ([1.0] * 20, 20),
        ([0.0] * 3 + [1.0] * 7 + [0.0] * 9, 0),  # too short
        ([0.0] * 3 + [1.0] * 8 + [0.0] * 9, 8),
        ([1.0] * 5 + [0.0] * 3 + [1.0] * 5, 13),  # a gap that is closed
        ([1.0] * 5 + [0.0] * 4 + [1.0] * 5, 0),
        ([1.0] * 9 + [0.0] * 4 + [1.0] * 9, 18),
        ([0.4] * 20, 0),  # not enough to begin
        ([0.6] + [0.4] * 10, 11),  # enough to go on
        ([], 0),
    ],
)
def test_gaps_are_closed_and_short_speech_is_dropped(probabilities: list[float], stretches: int) -> None:
    assert speech_stretches(np.array(probabilities, np.float32)).sum() == stretches
    assert STRETCH_SAMPLES == 512
