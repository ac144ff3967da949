"""Batches follow from the step alone; windows, targets and masks lie where they should."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from service.training.cache import ArrayCache
from service.training.pretraining.batches import MASKED, Batches, at, cut, masks
from service.training.pretraining.clips import Clips
from service.training.pretraining.recipe import PretrainRecipe, Rows
from service.training.pretraining.teachers import Target, Teacher
from tests.training.miniature import chord

RNG = np.random.default_rng
RECIPE = PretrainRecipe.model_validate({"audio": [{"rows": 2, "window": 0.6}, {"rows": 2, "window": 0.5}]})


def level(samples: np.ndarray) -> Target:
    """A teacher of frames, 10 ms each: their mean power."""
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    return Target(np.mean(np.square(frames), axis=1, keepdims=True), 80.0, 160.0)


def make_batches(cache: ArrayCache | None = None, hear: Callable[..., Target] = level, **changes: object) -> Batches:
    clips = tuple(partial(chord, 200.0 + 50 * n, 0.4 + 0.3 * n, n) for n in range(4))
    sources = [Clips(Rows(rows=2, window=0.6, speeds=(0.8, 1.25)), clips)]
    sources.append(Clips(Rows(rows=2, window=0.5), (partial(chord, 900.0, 1.0, 9),)))
    whole = Teacher("whole", True, lambda samples: Target(np.array([[len(samples)]], np.float32)))
    return Batches(RECIPE.model_copy(update=changes), sources, [whole, Teacher("level", False, hear)], cache)


def test_a_step_is_made_again_and_others_differ() -> None:
    first, again, other = make_batches().step(7), make_batches().step(7), make_batches().step(8)
    assert [batch.heard.shape[1] for batch in first] == [8000, 9600]
    for one, same, different in zip(first, again, other, strict=True):
        assert torch.equal(one.heard, same.heard)
        assert torch.equal(one.masked, same.masked)
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one.targets, same.targets, strict=True))
        assert not torch.equal(one.heard, different.heard)


def test_a_teacher_hears_nothing_twice_where_there_is_a_cache(tmp_path: Path) -> None:
    heard: list[bytes] = []

    def counted(samples: np.ndarray) -> Target:
        heard.append(samples.tobytes())
        return level(samples)

    plain = [target for batch in make_batches().step(3) for target in batch.targets]
    for _ in range(2):
        batches = make_batches(ArrayCache(tmp_path), counted)
        kept = [target for batch in batches.step(3) for target in batch.targets]
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(plain, kept, strict=True))
        assert len(heard) == len(set(heard)) > 0


def test_teachers_hear_the_whole_clip_at_its_speed_and_the_student_another_window() -> None:
    _, long = make_batches().step(0)
    assert {round(float(n) * speed) for n in long.targets[0] for speed in (0.8, 1.25)} & {6400, 11200, 16000, 20800}
    assert not torch.equal(long.heard, long.clean)
    assert long.targets[1].shape == (2, RECIPE.geometry.frames(9600), 1)


def test_frames_of_a_target_are_of_the_same_moment_as_the_students() -> None:
    batch = make_batches().step(0)[1]
    geometry, target = RECIPE.geometry, batch.targets[1][..., 0]
    for window, row in zip(batch.clean.numpy(), target.numpy(), strict=True):
        centres = np.arange(len(row)) * geometry.hop + geometry.receptive_field // 2
        power = np.array([np.mean(np.square(window[place - 80 : place + 80])) for place in centres])
        there = ~np.isnan(row)
        assert there.any()
        assert np.corrcoef(power[there], row[there])[0, 1] > 0.9 or np.std(power[there]) < 0.02


def test_a_target_between_its_frames_and_beyond_them() -> None:
    target = Target(np.array([[0.0], [10.0]], np.float32), first=100, step=200)
    values = at(target, np.array([-1.0, 50, 100, 200, 300, 399, 401]))[:, 0]
    np.testing.assert_allclose(values, [np.nan, 0, 0, 5, 10, 10, np.nan])
    np.testing.assert_allclose(at(Target(target.values[:1], 100, 200), np.array([150.0, 300]))[:, 0], [0, np.nan])


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.2])
@pytest.mark.parametrize("length", [4000, 40_000])
def test_a_window_is_a_stretch_of_what_is_played(speed: float, length: int) -> None:
    samples = np.linspace(0.1, 1, 16_000, dtype=np.float32)  # tells its place
    window, start = cut(samples, length, speed, RNG(0))
    assert len(window) == length
    place = max(0, -start)
    expected = 0.1 + 0.9 * (max(0, start) * speed) / 15_999
    assert window[place] == pytest.approx(expected, abs=2e-4)
    assert (start <= 0) == (16_000 / speed <= length)


def test_the_loudest_place_is_taken() -> None:
    samples = np.zeros(40_000, np.float32)
    samples[20_000:30_000] = 0.5
    loud = [cut(samples, 8000, 1.0, RNG(seed))[0].any() for seed in range(40)]
    assert np.mean(loud) > 0.75  # one place alone would be loud in 0.56 of cases


def test_masks_take_stretches() -> None:
    taken = np.stack([masks(50, 1.0, RNG(seed)) for seed in range(50)])
    assert MASKED <= taken.mean() < MASKED + 0.15
    assert np.abs(np.diff(taken.astype(int), axis=1)).sum(axis=1).max() <= 14
    assert not masks(50, 0.0, RNG(0)).any()
