import numpy as np
import pytest
from numpy.typing import NDArray

from service.registry.sections import Calibration
from service.speakers.verifying import other_voices

LINE = Calibration(slope=12.0, intercept=-4.0)


def clip(voice: int, windows: int, seed: int = 0) -> NDArray[np.float32]:
    """Windows of one voice: a direction of its own, with some noise."""
    noise = np.random.default_rng([voice, seed, windows]).normal(0, 0.15, (windows, 32))
    return (10 * (np.eye(32)[voice] + noise)).astype(np.float32)


def spoken(clips: list[NDArray[np.float32]]) -> list[NDArray[np.bool_]]:
    """Somebody speaks all the time."""
    return [np.ones(len(windows), bool) for windows in clips]


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        ([clip(0, 1)], [False]),
        ([clip(0, 6)], [False]),
        ([clip(0, 3), clip(0, 3, 1), clip(0, 1, 2)], [False, False, False]),
        ([np.concatenate([clip(0, 3), clip(1, 2)])], [True]),
        ([clip(0, 3), clip(1, 2), clip(0, 3, 1)], [False, True, False]),
        ([np.tile(clip(0, 1), (5, 1))], [False]),  # a short clip, repeated
    ],
)
def test_clips_of_another_voice_are_told(clips: list[NDArray[np.float32]], expected: list[bool]) -> None:
    assert other_voices(clips, spoken(clips), LINE) == expected
    assert other_voices(clips, spoken(clips), None) == [False] * len(clips)  # nobody knows what disagreement means


def test_voices_that_are_alike_are_one() -> None:
    near = clip(0, 4) + 5 * np.eye(32, dtype=np.float32)[1]
    clips = [clip(0, 4), near]
    assert other_voices(clips, spoken(clips), LINE) == [False, False]


def test_windows_in_which_nobody_speaks_are_no_voice() -> None:
    silence, half = clip(1, 3), np.concatenate([clip(0, 2), clip(1, 1)])
    clips, heard = [clip(0, 3), silence, half], [np.ones(3, bool), np.zeros(3, bool), np.array([True, True, False])]
    assert other_voices(clips, spoken(clips), LINE) == [False, True, True]
    assert other_voices(clips, heard, LINE) == [False, False, False]
    assert other_voices([silence], [np.zeros(3, bool)], LINE) == [False]
