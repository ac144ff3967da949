"""Prints how a bundle's classes are told in clips that hold one somewhere, by mean and by maximum of its windows.

`python -m tests.benchmarks.long_clips BUNDLE --data DIR [--seconds 5] [--part selection]`: every clip of the part lies
at a random place of so many seconds of noise, 30 dB below it. `input.aggregate` of a recipe is chosen by this.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from service.audio.waveform import SAMPLING_RATE
from service.training.answers import answer_clips
from service.training.augment import Samples, with_noise
from service.training.datasets.dataset import Span
from service.training.datasets.load import load_dataset
from service.training.inference import open_bundle
from service.training.recipe import read_recipe
from service.training.recordings import Recordings
from service.training.shipped import find_recipe

ABOVE = 30.0  # dB, clip over noise


class Buried(Recordings):
    """Every clip somewhere in noise of a length, at the same place and in the same noise whenever it is read."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def samples(self, span: Span) -> Samples:
        clip, rng = super().samples(span)[: self._length], np.random.default_rng(list(span.path.name.encode()))
        before = int(rng.integers(self._length - len(clip) + 1))
        silent = np.pad(clip, (before, self._length - len(clip) - before))
        return with_noise(silent, rng.standard_normal(self._length).astype(np.float32), ABOVE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", choices=["selection", "report"], default="report")
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    inference = open_bundle(given.bundle, "embedded", "cpu", "float32").inference
    dataset = load_dataset(given.data, read_recipe(find_recipe(given.bundle.name)).data)
    clips = dataset.selection if given.part == "selection" else dataset.report().clips
    answers = answer_clips(inference, clips, Buried(int(given.seconds * SAMPLING_RATE)))
    for aggregate in ("mean", "max"):
        right = replace(answers, aggregate=aggregate).scores("softmax").argmax(axis=1) == answers.targets
        print(f"{aggregate}: accuracy {right.mean():.3f} of {len(right)} clips of {given.seconds:g} s")


if __name__ == "__main__":
    main()
