"""Prints how a bundle's classes are told in clips that hold one somewhere, by mean and by maximum of its windows.

`python -m tests.benchmarks.long_clips BUNDLE --data DIR [--seconds 5] [--part selection]`: every clip of the part lies
at a random place of so many seconds of noise, 30 dB below it. `input.aggregate` of a recipe is chosen by this.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.audio.waveform import SAMPLING_RATE
from service.training.answers import ClassAnswers
from service.training.datasets.dataset import multi_hot
from service.training.datasets.load import load_dataset
from service.training.inference import open_bundle
from service.training.recipe import read_recipe
from service.training.recordings import Recordings
from service.training.shipped import find_recipe

BELOW = 10 ** (-30 / 20)


def buried(samples: NDArray[np.float32], length: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A clip `[N]` in noise `[length]`."""
    noise = rng.standard_normal(length).astype(np.float32)
    noise *= BELOW * np.sqrt(np.mean(np.square(samples)))
    start = int(rng.integers(max(1, length - len(samples) + 1)))
    noise[start : start + len(samples)] += samples[:length]
    return noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", help="of the clips; the bundle's name where it is not told")
    parser.add_argument("--part", choices=["selection", "report"], default="report")
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    opened = open_bundle(given.bundle, "embedded", "cpu", "float32")
    dataset = load_dataset(given.data, read_recipe(find_recipe(given.recipe or given.bundle.name)).data)
    clips = dataset.selection if given.part == "selection" else dataset.report().clips
    recordings, rng = Recordings(), np.random.default_rng(1)
    long = (buried(recordings.samples(clip.span), int(given.seconds * SAMPLING_RATE), rng) for clip in clips)
    logits = list(opened.inference(long))
    answers = ClassAnswers(logits, np.array([clip.target for clip in clips]), multi_hot(clips, logits[0].shape[1]))
    for aggregate in ("mean", "max"):
        right = replace(answers, aggregate=aggregate).scores("softmax").argmax(axis=1) == answers.targets
        print(f"{aggregate}: accuracy {right.mean():.3f} of {len(right)} clips of {given.seconds:g} s")


if __name__ == "__main__":
    main()
