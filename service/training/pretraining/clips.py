"""What pre-training hears: recordings in folders, synthesised speech, and sounds made from formulas. No labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.audio.waveform import SAMPLING_RATE
from service.training.datasets.dataset import BadDataset, read_names, read_table
from service.training.datasets.folders import SUFFIXES
from service.training.pretraining.recipe import AudioSection, PretrainRecipe, Rows, SpeechSection
from service.training.recordings import Recordings
from service.training.sounds import SOUNDS
from service.training.speech import synthesise

PIECE = 20 * SAMPLING_RATE  # longer recordings are heard in pieces of this length
SOUND = 4 * SAMPLING_RATE

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip; `kind` is the number of its formula, -1 where it has none."""

    read: Callable[[], Samples]
    kind: int = -1


@dataclass(frozen=True, slots=True)
class Source:
    """Clips that a share of every batch is drawn from."""

    rows: Rows
    clips: tuple[Clip, ...]


def read_sources(recipe: PretrainRecipe, folders: Sequence[Path], recordings: Recordings) -> list[Source]:
    """Everything that a recipe hears. Each recording is decoded once, so that faulty ones are named and left out.

    Raises:
        BadDataset: a section finds no audio, or its table is missing or another one.
        FileNotFoundError: a speech synthesiser is not installed.
    """
    sources = []
    for section, paths in [(section, _files(section, folders)) for section in recipe.audio]:
        clips = tuple(clip for path in recordings.readable(paths) for clip in _pieces(recordings, path))
        if not clips:
            raise BadDataset(f"none of the {len(paths)} files of audio.files {section.files!r} can be read")
        sources.append(Source(section, clips))
    if recipe.speech is not None:
        sources.append(Source(recipe.speech, tuple(_speech(recipe.speech, recipe.seed))))
    if recipe.sounds is not None:
        sources.append(Source(recipe.sounds, tuple(_sounds(recipe.sounds.clips, recipe.seed))))
    return sources


def _files(section: AudioSection, folders: Sequence[Path]) -> list[Path]:
    """The audio files of a section, by name; the last parts of a path tell whether a table names it."""
    listed, unlisted = (_names(table, folders) for table in (section.listed, section.unlisted))

    def wanted(path: Path) -> bool:
        ends = {"/".join(path.parts[-count:]) for count in range(1, len(path.parts))}
        named = (listed is None or bool(ends & listed)) and not (unlisted and ends & unlisted)
        return named and path.suffix.lower() in SUFFIXES and path.is_file()

    paths = [path for folder in folders for path in sorted(folder.glob(section.files)) if wanted(path)]
    if not paths:
        places, known = " and ".join(map(str, folders)), " ".join(sorted(SUFFIXES))
        raise BadDataset(f"audio.files {section.files!r}: no audio in {places}; expected files with {known}")
    return paths


def _names(table: str | None, folders: Sequence[Path]) -> set[str] | None:
    if table is None:
        return None
    name, _, column = table.partition(":")
    found = [path for folder in folders if (path := folder / name).is_file()]
    if not found:
        raise BadDataset(f"there is no table {name} in {' and '.join(map(str, folders))}")
    if column:
        return {row[column] for path in found for row in read_table(path, (column,))}
    return {each for path in found for each in read_names(path, "file")}


def _pieces(recordings: Recordings, path: Path) -> Iterator[Clip]:
    def piece(start: int) -> Samples:
        return recordings.samples(path)[start : start + PIECE]

    for start in range(0, len(recordings.samples(path)), PIECE):
        yield Clip(partial(piece, start))


def _speech(section: SpeechSection, seed: int) -> Iterator[Clip]:
    rng = np.random.default_rng((seed, 3))
    counts = rng.integers(section.phrase[0], section.phrase[1] + 1, section.clips)
    for _, samples in synthesise([" ".join(rng.choice(section.words, n)) for n in counts], section.clips, seed):
        yield Clip(samples.copy)


def _sounds(count: int, seed: int) -> Iterator[Clip]:
    rng = np.random.default_rng((seed, 4))
    for kind, make in enumerate(SOUNDS):
        for _ in range(count):
            sound = make(SOUND, rng)
            yield Clip((sound / (2 * np.abs(sound).max() + 1e-9)).astype(np.float32).copy, kind)
