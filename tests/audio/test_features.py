"""Filter bank against torchaudio's, and windows against the contract's words."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.audio.features import (
    FILTER_BANK,
    PLAIN_SAMPLES,
    Features,
    InputSpec,
    Layout,
)
from service.audio.filter_bank import HOP_SAMPLES, fbank
from tests.synthesis import noise, tone

kaldi = pytest.importorskip("torchaudio.compliance.kaldi")


def clip(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(noise(seconds, seed=seed)[:, 0])


def reference(samples: torch.Tensor) -> torch.Tensor:
    return kaldi.fbank(
        (samples - samples.mean())[None],
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )


@pytest.mark.parametrize("samples", [400, 401, 559, 560, 16_000, 80_000, 160_001])
def test_fbank_is_kaldis(samples: int) -> None:
    waveform = clip(samples / 16_000, seed=samples) + 0.2  # an offset, which must go
    features = fbank(waveform)
    assert features.shape == (FILTER_BANK.layout(samples, InputSpec(1)).length, 128)
    torch.testing.assert_close(features, reference(waveform), atol=5e-4, rtol=1e-5)


def test_fbank_of_a_tone_and_of_silence() -> None:
    waveform = torch.from_numpy(tone(1.0)[:, 0])
    torch.testing.assert_close(fbank(waveform).exp(), reference(waveform).exp(), atol=1e-3, rtol=1e-4)
    silence = torch.zeros(16_000)
    torch.testing.assert_close(fbank(silence), reference(silence))


def test_fbank_of_a_batch_is_each_alone() -> None:
    clips = torch.stack([clip(1.0, seed) for seed in range(5)])
    torch.testing.assert_close(fbank(clips), torch.stack([fbank(one) for one in clips]), atol=1e-5, rtol=1e-5)


def test_fbank_in_blocks_is_one_fbank() -> None:
    waveform = clip(12.0)
    part = fbank(waveform - waveform.mean())[700:800]
    torch.testing.assert_close(part, reference(waveform)[700:800], atol=5e-4, rtol=1e-5)


def test_fbank_needs_a_frame() -> None:
    with pytest.raises(ValueError, match="399"):
        fbank(torch.zeros(399))


@pytest.mark.parametrize(
    ("length", "window", "windows", "hop", "starts"),
    [
        (1_000, 100, 1, None, [0]),
        (1_000, 100, 2, None, [0, 900]),
        (1_000, 100, 3, None, [0, 450, 900]),
        (1_000, 100, 4, None, [0, 300, 600, 900]),
        (107, 100, 3, None, [0, 3, 7]),
        (103, 100, 5, None, [0, 0, 1, 2, 3]),
        (300, 100, None, None, [0, 100, 200]),
        (310, 100, None, None, [0, 100, 200, 210]),
        (300, 100, None, 50, [0, 50, 100, 150, 200]),
        (299, 100, None, 50, [0, 50, 100, 150, 199]),
        (300, 100, None, 1_000, [0, 200]),
        (100, 100, None, None, [0]),
        (100, 100, 4, None, [0]),
        (30, 100, 4, None, [0]),
        (30, 100, None, 10, [0]),
    ],
)
def test_window_starts(length: int, window: int, windows: int | None, hop: int | None, starts: list[int]) -> None:
    layout = Layout(length, window, windows, hop)
    assert layout.starts() == starts
    assert layout.count == len(starts)


@given(
    length=st.integers(1, 5_000),
    window=st.integers(1, 1_000),
    windows=st.none() | st.integers(1, 20),
    hop=st.none() | st.integers(1, 2_000),
)
def test_windows_lie_inside_and_cover_the_ends(length: int, window: int, windows: int | None, hop: int | None) -> None:
    layout = Layout(length, window, windows, hop)
    starts = layout.starts()
    assert layout.count == len(starts)
    assert starts[0] == 0
    assert starts == sorted(starts)
    if length <= window:
        assert starts == [0]
        return
    assert all(start + window <= length for start in starts)
    if windows is not None:
        assert len(starts) == windows
    if windows != 1:
        assert starts[-1] + window == length
    if windows is None:
        steps = np.diff(starts)
        assert (steps <= (hop or window)).all()
        assert (steps[:-1] == (hop or window)).all()


def test_ast_windows_are_cut_and_normalised() -> None:
    waveform = clip(5.0)
    spec = InputSpec(window_frames=128, windows=3, mean=-6.0, std=4.0)
    windows = FILTER_BANK.windows(waveform, spec)
    frames = (fbank(waveform) + 6.0) / 8.0
    assert windows.inputs.shape == (3, 128, 128)
    for inputs, start in zip(windows.inputs, (0, 185, 370), strict=True):
        torch.testing.assert_close(inputs, frames[start : start + 128])
    expected = [(0.0, 1.28), (1.85, 3.13), (3.7, 4.98)]
    np.testing.assert_allclose(windows.spans, expected, atol=1e-9)


def test_short_clip_for_ast() -> None:
    waveform = clip(0.5)  # 48 frames
    spec = InputSpec(window_frames=100, mean=-6.0, std=4.0)
    frames = (fbank(waveform) + 6.0) / 8.0
    zeros = FILTER_BANK.windows(waveform, spec)
    torch.testing.assert_close(zeros.inputs[0, :48], frames)
    assert (zeros.inputs[0, 48:] == 6.0 / 8.0).all()  # zeros go in before normalisation
    assert zeros.spans == ((0.0, 0.5),)
    repeat = FILTER_BANK.windows(waveform, InputSpec(window_frames=100, mean=-6.0, std=4.0, short="repeat"))
    torch.testing.assert_close(repeat.inputs[0], torch.cat((frames, frames, frames[:4])))
    center = FILTER_BANK.windows(waveform, InputSpec(window_frames=101, mean=-6.0, std=4.0, short="center"))
    torch.testing.assert_close(center.inputs[0, 26:74], frames)
    assert (torch.cat((center.inputs[0, :26], center.inputs[0, 74:])) == 6.0 / 8.0).all()
    assert center.spans == ((0.0, 0.5),)


def test_wav2vec2_windows_are_the_samples() -> None:
    waveform = clip(2.0)
    windows = PLAIN_SAMPLES.windows(waveform, InputSpec(window_frames=128, windows=None, hop_frames=50))
    assert windows.inputs.shape == (3, 128 * HOP_SAMPLES)
    for inputs, start in zip(windows.inputs, (0, 8_000, 32_000 - 20_480), strict=True):
        assert torch.equal(inputs, waveform[start : start + 20_480])
    np.testing.assert_allclose(windows.spans, [(0.0, 1.28), (0.5, 1.78), (0.72, 2.0)], atol=1e-9)


def test_short_clip_for_wav2vec2() -> None:
    waveform = clip(0.5)
    repeat = PLAIN_SAMPLES.windows(waveform, InputSpec(window_frames=128, windows=None, short="repeat"))
    assert torch.equal(repeat.inputs[0], torch.cat((waveform, waveform, waveform[:4_480])))
    assert repeat.spans == ((0.0, 0.5),)
    zeros = PLAIN_SAMPLES.windows(waveform, InputSpec(window_frames=128, short="zeros"))
    assert torch.equal(zeros.inputs[0], torch.cat((waveform, torch.zeros(12_480))))
    center = PLAIN_SAMPLES.windows(waveform, InputSpec(window_frames=128, short="center"))
    assert torch.equal(center.inputs[0], torch.cat((torch.zeros(6_240), waveform, torch.zeros(6_240))))
    assert center.spans == ((0.0, 0.5),)


@pytest.mark.parametrize("seconds", [0.025, 0.03, 0.5, 3.3])
@pytest.mark.parametrize("reader", [FILTER_BANK, PLAIN_SAMPLES])
@pytest.mark.parametrize(
    "spec", [InputSpec(100), InputSpec(100, 7), InputSpec(100, None, 30), InputSpec(99, whole=True)]
)
def test_windows_lie_as_was_told_before_they_are_made(reader: Features, spec: InputSpec, seconds: float) -> None:
    samples = clip(seconds)
    layout, whole = reader.layout(len(samples), spec), reader.whole(samples)
    windows = reader.windows(samples, spec, whole)
    assert len(whole) == layout.length
    assert layout.count == len(windows.inputs) == len(windows.spans)
    assert layout.frames == windows.frames
    assert windows.inputs.shape[1:] == (layout.window, *reader.bins)
    assert torch.equal(windows.inputs, reader.windows(samples, spec).inputs)
