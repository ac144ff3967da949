"""The log mel filter bank of AST's input: `torchaudio.compliance.kaldi.fbank` as the contract has it (section 3).

It is written here because it serves batches and keeps its tables between calls.
"""

import math
from functools import cache

import torch
from torch import Tensor

from service.audio.waveform import MIN_SAMPLES, SAMPLING_RATE

FRAME_SAMPLES = 400  # 25 ms: one analysis frame
HOP_SAMPLES = 160  # 10 ms: from one frame to the next; `window_frames` counts these for wav2vec 2.0 too
FFT_SAMPLES = 512  # the next power of two
MEL_BINS = 128
LOWEST_HZ = 20.0  # of the filter bank, which ends at half the sampling rate
PREEMPHASIS = 0.97
POWER_FLOOR = torch.finfo(torch.float32).eps  # under the logarithm, as Kaldi has it
FRAMES_PER_BLOCK = 512  # frames transformed at once: bounds the memory of a long clip


def fbank(samples: Tensor) -> Tensor:
    """Log mel filter bank of clips less their means: float32 `[N]` or `[B, N]` -> `[..., frames, 128]`.

    A clip's mean goes with each frame's own, so that a frame has the same numbers wherever it is cut from.

    Raises:
        ValueError: fewer samples than one frame (400).
    """
    if samples.shape[-1] < MIN_SAMPLES:
        raise ValueError(f"a clip has {samples.shape[-1]} samples; a filter bank needs {MIN_SAMPLES} or more")
    frames = samples.to(torch.float32).unfold(-1, FRAME_SAMPLES, HOP_SAMPLES)  # [..., frames, 400], a view
    blocks = [
        _log_mel(frames.narrow(-2, first, min(FRAMES_PER_BLOCK, frames.shape[-2] - first)))
        for first in range(0, frames.shape[-2], FRAMES_PER_BLOCK)
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-2)


def _log_mel(frames: Tensor) -> Tensor:
    """Raw frames `[..., 400]` -> `[..., 128]`: offset, pre-emphasis, window, power spectrum, mel, logarithm."""
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)
    frames = (frames - PREEMPHASIS * previous) * _hanning(frames.device)
    spectrum = torch.view_as_real(torch.fft.rfft(frames, n=FFT_SAMPLES))
    power = spectrum.square().sum(dim=-1)  # [..., 257]
    return (power @ _mel_filters(frames.device)).clamp_min(POWER_FLOOR).log()


@cache
def _hanning(device: torch.device) -> Tensor:
    return torch.hann_window(FRAME_SAMPLES, periodic=False, device=device)


@cache
def _mel_filters(device: torch.device) -> Tensor:
    """Triangles on Kaldi's mel scale, `1127 ln(1 + f / 700)`: `[257, 128]`, nothing at half the sampling rate."""
    hertz = torch.arange(FFT_SAMPLES // 2, dtype=torch.float64) * (SAMPLING_RATE / FFT_SAMPLES)
    mels = 1127.0 * torch.log1p(hertz / 700.0)[:, None]  # [256, 1]
    lowest, highest = (1127.0 * math.log1p(f / 700.0) for f in (LOWEST_HZ, SAMPLING_RATE / 2))
    width = (highest - lowest) / (MEL_BINS + 1)
    left = lowest + width * torch.arange(MEL_BINS, dtype=torch.float64)[None, :]
    rising, falling = (mels - left) / width, (left + 2 * width - mels) / width
    filters = torch.minimum(rising, falling).clamp_min(0.0)
    return torch.nn.functional.pad(filters, (0, 0, 0, 1)).to(device, torch.float32)
