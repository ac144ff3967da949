from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.audio.features import FILTER_BANK, PLAIN_SAMPLES
from service.training.augment import (
    Augmenter,
    coded,
    coloured_noise,
    crop,
    fixed_noise,
    jittered,
    masked,
    mixed_pair,
    resampled,
    reverberated,
    room,
    shifted,
    tilted,
    with_noise,
)
from service.training.recipe import Augmentation
from tests.training.miniature import chord

CLIP = chord(300, 1.0, seed=0)
ALL = Augmentation(
    shift=0.1, speed=0.1, gain=6, tilt=0.5, noise=0.7, noise_files=("*",), room=0.5, codec=0.2, telephone=0.2
)


def augmenter(recipe: Augmentation, window: int) -> Augmenter:
    return Augmenter(recipe, window, [Path("noise")], lambda path: chord(90, 0.2, seed=1))


@given(st.integers(0, 2**31), st.integers(400, 40_000), st.integers(400, 30_000))
def test_length_stays_within_a_frame_and_the_window(seed: int, length: int, window: int) -> None:
    clip = np.resize(CLIP, length)
    out = augmenter(ALL, window)(clip, np.random.default_rng(seed))
    assert 400 <= len(out) <= window
    assert out.dtype == np.float32
    assert np.isfinite(out).all()


def test_same_seed_same_clip() -> None:
    first, again = (augmenter(ALL, 16_000)(CLIP, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_nothing_asked_nothing_changed() -> None:
    out = augmenter(Augmentation(), len(CLIP))(CLIP, np.random.default_rng(0))
    np.testing.assert_array_equal(out, CLIP)


def test_pieces_hold_what_is_loud() -> None:
    clip = np.concatenate((np.zeros(30_000, np.float32), CLIP[:1_600], np.zeros(30_000, np.float32)))
    pieces = [augmenter(Augmentation(piece=0.3), 16_000)(clip, np.random.default_rng(seed)) for seed in range(20)]
    lengths = {len(piece) for piece in pieces}
    assert min(lengths) >= 4_800
    assert max(lengths) <= 16_000
    assert len(lengths) > 10
    assert all(np.sqrt(np.mean(piece**2)) > 0.01 for piece in pieces)
    short = augmenter(Augmentation(piece=0.3), 16_000)(CLIP[:500], np.random.default_rng(0))
    np.testing.assert_array_equal(short, CLIP[:500])


def test_background_is_noise_at_any_level_or_silence() -> None:
    made = [augmenter(Augmentation(background=0.5), 8_000).background(np.random.default_rng(n)) for n in range(60)]
    assert {len(one) for one in made} == {8_000}
    levels = np.array([20 * np.log10(np.sqrt(np.mean(one.astype(np.float64) ** 2)) + 1e-12) for one in made])
    silent = levels < -200
    assert 1 <= silent.sum() <= 15
    assert (levels[~silent] >= -75.1).all()
    assert (levels[~silent] <= -24.9).all()


def test_clip_itself_is_never_written_to() -> None:
    before = CLIP.copy()
    augmenter(ALL, 8_000)(CLIP, np.random.default_rng(0))
    np.testing.assert_array_equal(CLIP, before)


def test_crop_reaches_every_place() -> None:
    clip = np.arange(10, dtype=np.float32)
    starts = {float(crop(clip, 8, np.random.default_rng(seed))[0]) for seed in range(50)}
    assert starts == {0.0, 1.0, 2.0}


def test_resampled_moves_pitch() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    faster = resampled(tone, 1.25)
    assert len(faster) == 12_800
    assert np.abs(np.fft.rfft(faster)).argmax() * 16_000 / len(faster) == pytest.approx(1250, abs=2)


def test_shifted() -> None:
    clip = np.arange(1, 1001, dtype=np.float32)
    np.testing.assert_array_equal(shifted(clip, 3, 2000)[:5], [0, 0, 0, 1, 2])
    np.testing.assert_array_equal(shifted(clip, -3, 2000)[:2], [4, 5])
    assert len(shifted(clip, -10_000, 2000)) == 400


@pytest.mark.parametrize("snr", [-5.0, 0.0, 15.0])
def test_noise_has_the_ratio_asked_for(snr: float) -> None:
    noise = np.random.default_rng(0).standard_normal(len(CLIP)).astype(np.float32)
    added = with_noise(CLIP, noise, snr) - CLIP
    assert 10 * np.log10(np.mean(CLIP**2) / np.mean(added**2)) == pytest.approx(snr, abs=0.01)


def test_silence_stays_silent() -> None:
    silence = np.zeros(1000, np.float32)
    np.testing.assert_array_equal(with_noise(silence, CLIP[:1000], 10.0), silence)


def test_fixed_noise_is_the_data_sets_formula() -> None:
    x, noise = CLIP, chord(77, 0.3, seed=2)
    n = np.resize(np.roll(noise, 57), len(x))
    g = np.sqrt(np.mean(x**2) / np.mean(n**2) / 10 ** (15 / 10))
    noisy = x + g * n
    expected = noisy.copy()
    expected[1:] = noisy[1:] - 0.3 * noisy[:-1]
    np.testing.assert_allclose(fixed_noise(x, noise, 57, 15.0, -0.3), expected, atol=1e-6)


def test_tilt_keeps_the_first_sample() -> None:
    np.testing.assert_allclose(tilted(np.array([1, 2, 3], np.float32), 0.5), [1, 2.5, 4])


def test_a_telephone_cuts_off_at_4_khz() -> None:
    white = coloured_noise(16_000, 0.0, np.random.default_rng(0))
    recipe = Augmentation(telephone=1.0)
    narrow = augmenter(recipe, 16_000)(white, np.random.default_rng(0))
    before, after = np.abs(np.fft.rfft(white)), np.abs(np.fft.rfft(narrow))
    assert len(narrow) == len(white)
    assert after[5_000:].max() < 0.02 * before[4_400:].max()
    np.testing.assert_allclose(after[:3_000], before[:3_000], rtol=0.2, atol=3)


@pytest.mark.parametrize("key", ["telephone", "room", "noise", "codec"])
def test_a_chance_is_one(key: str) -> None:
    clip = CLIP[:1600]
    made = augmenter(Augmentation.model_validate({key: 0.3}), 1600)
    changed = [not np.array_equal(made(clip, np.random.default_rng(seed)), clip) for seed in range(200)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.1)


def test_coloured_noise_falls_with_frequency() -> None:
    power = np.abs(np.fft.rfft(coloured_noise(2**15, 1.0, np.random.default_rng(0)))) ** 2
    octaves = [power[2**k : 2 ** (k + 1)].mean() for k in (6, 8, 10, 12)]
    np.testing.assert_allclose(np.array(octaves[1:]) / octaves[:-1], 0.25, rtol=0.4)


def test_mixup_takes_from_both_and_has_no_mean() -> None:
    piece, other = np.ones(500, np.float32) + CLIP[:500], CLIP[:800]
    blend, share = mixed_pair(piece, other, np.random.default_rng(0))
    assert 0.0 < share < 1.0
    assert len(blend) == 800
    assert abs(blend.mean()) < 1e-4
    np.testing.assert_allclose(np.corrcoef(blend[500:], other[500:])[0, 1], 1.0, atol=1e-4)


@given(st.integers(0, 2**31))
def test_masks_stay_within_their_size(seed: int) -> None:
    frames = torch.ones(40, 128)
    out = masked(frames, 10, 20, -7.0, np.random.default_rng(seed))
    hidden = out == -7.0
    assert int(hidden.all(dim=1).sum()) <= 10
    assert int(hidden.all(dim=0).sum()) <= 20
    assert bool((out[~hidden] == 1).all())
    assert bool((frames == 1).all())


def test_jitter_rolls_frames() -> None:
    frames = torch.arange(30.0)[:, None].repeat(1, 4) * 10
    out = jittered(frames, np.random.default_rng(3))
    assert out.shape == frames.shape
    assert set((out // 10).int().unique().tolist()) == set(range(30))


def test_window_has_the_samples_of_its_frames() -> None:
    assert PLAIN_SAMPLES.window_samples(128) == 20_480
    assert 1 + (FILTER_BANK.window_samples(128) - 400) // 160 == 128


def test_jitter_is_the_papers_noise_and_roll() -> None:
    """U(0, 1) for each value times U(0, 1) for the clip, over 10; then a roll by -10 to 9 frames."""
    frames = torch.arange(40.0)[:, None].repeat(1, 128)
    rolls, levels = set(), []
    for seed in range(200):
        out = jittered(frames, np.random.default_rng(seed))
        roll = int(out[0, 0].floor())
        rolls.add((-roll) % 40)
        noise = out - torch.roll(frames, (-roll) % 40, dims=0)
        assert float(noise.min()) >= 0
        assert float(noise.max()) <= 0.1
        levels.append(float(noise.max()))
    assert rolls == {*range(10), *range(30, 40)}  # -10 is 30 of 40
    assert np.mean(levels) == pytest.approx(0.05, abs=0.01)


def test_mixup_weighs_by_beta_10_10() -> None:
    shares = [mixed_pair(CLIP[:500], CLIP[500:1000], np.random.default_rng(seed))[1] for seed in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.01)
    assert np.var(shares) == pytest.approx(1 / 84, rel=0.1)  # of Beta(10, 10)


def test_a_room_keeps_the_direct_sound_in_its_place() -> None:
    click = np.zeros(8_000, np.float32)
    click[1_000] = 1.0
    for seed in range(20):
        heard = reverberated(click, room(np.random.default_rng(seed)))
        assert np.abs(heard).argmax() == 1_000
        assert np.abs(heard[:1_000]).max() < 1e-5
        assert np.square(heard[1_001:]).sum() > 1e-3


@pytest.mark.parametrize("seed", range(8))
def test_a_codec_changes_a_clip_a_little_and_moves_it_nowhere(seed: int) -> None:
    sweep = np.sin(np.cumsum(np.linspace(0.05, 0.6, 24_000))).astype(np.float32) / 3
    heard = coded(sweep, np.random.default_rng(seed))
    assert heard.shape == sweep.shape
    lags = {lag: np.corrcoef(sweep[2_000:20_000], np.roll(heard, lag)[2_000:20_000])[0, 1] for lag in range(-40, 41)}
    assert max(lags, key=lags.__getitem__) == 0
    assert lags[0] > 0.8
    assert np.abs(heard - sweep).max() > 1e-5
