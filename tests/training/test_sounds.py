"""Sounds made from formulas: finite, never silent, of one seed the same."""

from collections.abc import Callable

import numpy as np
import pytest

from service.training.sounds import SOUNDS, Signal


@pytest.mark.parametrize("make", SOUNDS, ids=lambda make: str(make.__name__))
@pytest.mark.parametrize("seed", range(5))
def test_a_sound_is_heard_and_can_be_made_again(make: Callable[..., Signal], seed: int) -> None:
    sound, again = (make(16_000, np.random.default_rng(seed)) for _ in range(2))
    assert sound.shape == (16_000,)
    assert np.isfinite(sound).all()
    assert sound.std() > 1e-3
    np.testing.assert_array_equal(sound, again)
    assert not np.array_equal(sound, make(16_000, np.random.default_rng(seed + 100)))
