"""Adds words said by speech synthesisers to a data set's training part. Knows neither features nor models."""

import wave
from dataclasses import replace
from pathlib import Path

from service.audio.waveform import SAMPLING_RATE
from service.training.augment import as_int16
from service.training.datasets.dataset import BadDataset, Clip, Dataset, target_of
from service.training.recipe import Synthesis
from service.training.speech import Samples, synthesise

SYNTHESISED = "synthesised"  # the group of its clips


def with_speech(dataset: Dataset, synthesis: Synthesis, seed: int, folder: Path) -> Dataset:
    """The data set with `synthesis.clips` more training clips, written to `folder` as 16-bit WAV at 16 kHz.

    Raises:
        BadDataset: a label that the data set does not have, or a synthesiser that is not installed.
    """
    if not synthesis.clips:
        return dataset
    targets = {
        word: target_of(label, dataset.labels, Path("synthesis.words")) for label, word in synthesis.words.items()
    }
    try:
        spoken = synthesise(tuple(targets), synthesis.clips, seed, telephone=synthesis.telephone)
    except FileNotFoundError as error:
        raise BadDataset(str(error)) from None
    clips = []
    for number, (word, samples) in enumerate(spoken):
        path = folder / f"{SYNTHESISED}-{number}.wav"
        _write(path, samples)
        clips.append(Clip(path, targets[word], SYNTHESISED))
    return replace(dataset, train=dataset.train + tuple(clips))


def _write(path: Path, samples: Samples) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLING_RATE)
        file.writeframes(as_int16(samples).astype("<i2").tobytes())
