"""Windows from a moving buffer against the whole-clip path, whatever pieces a recording comes in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.audio.features import FILTER_BANK, PLAIN_SAMPLES, Features, InputSpec
from service.audio.moving import MovingWindows
from service.errors import ClipTooShort
from tests.synthesis import noise

SPECS = (
    InputSpec(98, mean=-6.6, std=5.4),
    InputSpec(30, short="repeat", normalize=True),
    InputSpec(60, short="center"),
    InputSpec(200, whole=True, normalize=True),
)


def specs_of(features: Features) -> list[InputSpec]:
    return [replace(spec, normalize=spec.normalize and features is PLAIN_SAMPLES) for spec in SPECS]


def moved(
    features: Features, pieces: list[torch.Tensor], hop_frames: int, most: int = 1000, first: int = 0
) -> list[tuple[torch.Tensor, list[tuple[float, float]], list[int]]]:
    """By spec: all windows, their spans and their numbers."""
    moving = MovingWindows(features, specs_of(features), hop_frames, first)
    cuts = []
    for piece in pieces:
        moving.add(piece)
        while taken := moving.take(most):
            cuts += taken
    cuts += moving.finish()
    found = []
    for index in range(len(SPECS)):
        own = [cut for cut in cuts if cut.spec == index]
        numbers = [cut.number + at for cut in own for at in range(len(cut.windows.spans))]
        spans = [span for cut in own for span in cut.windows.spans]
        found.append((torch.cat([cut.windows.inputs for cut in own]) if own else torch.empty(0), spans, numbers))
    return found


@pytest.mark.parametrize("features", [FILTER_BANK, PLAIN_SAMPLES])
@given(st.integers(400, 50_000), st.integers(1, 150), st.lists(st.integers(0, 50_000), max_size=6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_windows_are_those_of_the_whole_clip(
    features: Features, samples: int, hop_frames: int, borders: list[int], few: bool
) -> None:
    clip = torch.from_numpy(noise(samples / 16_000, seed=samples)[:, 0]) + 0.05
    cuts = sorted(min(border, samples) for border in borders)
    pieces = list(torch.tensor_split(clip, cuts))
    for spec, (inputs, spans, numbers) in zip(
        specs_of(features), moved(features, pieces, hop_frames, 1 if few else 1000), strict=True
    ):
        is_longer = features.layout(samples, replace(spec, whole=False)).length > spec.window_frames * (
            1 if features is FILTER_BANK else 160
        )
        asked = replace(spec, windows=None, hop_frames=hop_frames, whole=spec.whole and not is_longer)
        wanted = features.windows(clip, asked)
        assert spans == list(wanted.spans)
        assert numbers == list(range(len(spans)))
        assert inputs.shape == wanted.inputs.shape
        torch.testing.assert_close(inputs, wanted.inputs, rtol=0, atol=1e-6 * float(wanted.inputs.abs().max()))


def test_each_window_is_what_a_clip_cut_there_is() -> None:
    """AST reads 400 samples for a frame, so a window of F frames takes 240 more than F hops."""
    clip = torch.from_numpy(noise(6.0, seed=3)[:, 0])
    for features, reach in ((FILTER_BANK, 240), (PLAIN_SAMPLES, 0)):
        inputs, spans, _ = moved(features, list(clip.split(7_001)), 50)[0]
        for window, (start, _) in zip(inputs, spans, strict=True):
            at = round(start * 16_000)
            alone = features.windows(clip[at : at + 98 * 160 + reach], specs_of(features)[0]).inputs[0]
            torch.testing.assert_close(window, alone, rtol=0, atol=1e-6 * float(alone.abs().max()))


@pytest.mark.parametrize("first", [1, 7, 11, 12, 40])
def test_windows_before_the_first_that_is_wanted_are_left_out(first: int) -> None:
    clip = torch.from_numpy(noise(6.13, seed=4)[:, 0])
    everything = moved(PLAIN_SAMPLES, list(clip.split(5_000)), 50)
    for (inputs, spans, numbers), (some, their_spans, their_numbers) in zip(
        everything, moved(PLAIN_SAMPLES, list(clip.split(5_000)), 50, first=first), strict=True
    ):
        assert their_numbers == numbers[first:]
        assert their_spans == spans[first:]
        assert torch.equal(some, inputs[first:]) or not len(some)


def test_memory_is_bounded_by_a_window() -> None:
    moving = MovingWindows(PLAIN_SAMPLES, [InputSpec(100)], 500)
    for _ in range(200):
        moving.add(torch.zeros(16_000))
        moving.take(1000)
        assert len(moving._buffer) <= 2 * 16_000


def test_too_short_for_any_frame() -> None:
    moving = MovingWindows(FILTER_BANK, [InputSpec(100)], 50)
    moving.add(torch.from_numpy(np.zeros(399, np.float32)))
    with pytest.raises(ClipTooShort, match="399 samples"):
        moving.finish()
