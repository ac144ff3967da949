"""The device's pace as a line: fixed cost apart from marginal cost, and what noise and sameness make of it."""

import random

import pytest

from service.engine.cost import Pace


def test_nothing_is_known_at_first() -> None:
    assert (Pace().rate, Pace().frames_within(0.1)) == (0.0, float("inf"))


@pytest.mark.parametrize(("fixed", "marginal"), [(0.0, 1e-3), (0.02, 1e-3), (0.5, 1e-3), (0.008, 4e-6)])
def test_the_fixed_cost_is_told_apart(fixed: float, marginal: float) -> None:
    pace, generator = Pace(), random.Random(0)
    for _ in range(50):
        frames = generator.randrange(100, 1000)
        pace.observe(frames, (fixed + frames * marginal) * generator.uniform(0.98, 1.02))
    floor = 0.1 / pace.rate  # of the marginal cost, as noise might make it vanish
    assert pace.frames_within(0.1) == pytest.approx(0.1 / max(marginal, floor), rel=0.25)


def test_equal_batches_tell_only_the_mean() -> None:
    pace = Pace()
    for _ in range(50):
        pace.observe(100, 0.2)
    assert pace.rate == pytest.approx(500)
    assert pace.frames_within(0.2) == pytest.approx(100)


def test_it_follows_a_device_that_slows_down() -> None:
    pace = Pace()
    for slowness in (1, 10):
        for i in range(60):
            pace.observe(100 + i % 3 * 100, slowness * (100 + i % 3 * 100) / 1000)
    assert pace.rate == pytest.approx(100, rel=0.05)
    assert pace.frames_within(1.0) == pytest.approx(100, rel=0.05)
