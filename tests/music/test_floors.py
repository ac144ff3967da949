"""The baselines of the musical styles hear what they say, and nothing else."""

import numpy as np
import pytest
import torch

from tests.benchmarks.floors import log_mel
from tests.music.floors import interval, onsets, period, periodicity, right, simple, tempo_and_register


def clicks(period: float, hertz: float = 440.0, seconds: float = 8.0) -> torch.Tensor:
    """A decaying tone every `period` seconds."""
    time = torch.arange(round(16_000 * seconds)) / 16_000
    return 0.3 * torch.sin(2 * torch.pi * hertz * time) * torch.exp(-12 * torch.remainder(time, period))


@pytest.mark.parametrize("seconds", [0.25, 0.4, 0.9])
def test_the_strongest_period_is_that_of_the_clicks(seconds: float) -> None:
    assert period(periodicity(onsets(log_mel(clicks(seconds).numpy())))) == pytest.approx(seconds, rel=0.1)
    assert tempo_and_register(clicks(seconds))[0] == pytest.approx(1 / seconds, abs=0.3)


def test_register_is_that_of_the_tone_and_harmony_is_not() -> None:
    low, high = clicks(0.5, 220.0), clicks(0.5, 880.0)
    assert tempo_and_register(low)[4] == pytest.approx(np.log2(220), abs=0.05)
    assert tempo_and_register(high)[4] == pytest.approx(np.log2(880), abs=0.05)
    chroma = slice(60, 66)  # behind three statistics of twenty cepstra
    assert np.allclose(
        simple(clicks(0.5, 440.0))[chroma], simple(clicks(0.5, 440.0 * 2 ** (5 / 12)))[chroma], atol=0.05
    )


def test_a_linear_classifier_finds_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    labels, splits = rng.integers(0, 3, 600), np.repeat(["train", "selection", "report"], 200)
    telling = np.eye(3)[labels] + 0.1 * rng.standard_normal((600, 3))
    assert right(telling, labels, splits).mean() == 1.0
    assert right(rng.standard_normal((600, 3)), labels, splits).mean() < 0.45


def test_intervals_are_over_works() -> None:
    correct = np.repeat([True, False], 50)
    assert interval(correct, np.array(["one"] * 100)) == (0.5, 0.5)
    few, many = interval(correct, np.repeat(["a", "b"], 50)), interval(correct, np.arange(100).astype(str))
    assert few == (0.0, 1.0)
    assert many == pytest.approx((0.4, 0.6), abs=0.02)
