"""What pre-training hears: recordings in folders, and speech of espeak-ng and flite. No labels."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from service.audio.decode import decode
from service.audio.waveform import SAMPLING_RATE
from service.training.augment import Random, Samples
from service.training.datasets.dataset import SUFFIXES, BadDataset, Span, read_lines, read_table
from service.training.pretraining.recipe import AudioSection, PretrainRecipe, Rows
from service.training.recordings import Recordings

PIECE = 20 * SAMPLING_RATE  # longer recordings are heard in pieces of this length
PROGRAMS = ("espeak-ng", "flite")
FLITE_SHARE = 0.35  # of the clips: few voices, but recorded from people
FLITE_VOICES = {"awb": 125, "kal": 105, "kal16": 105, "rms": 100, "slt": 170}  # name: usual pitch, Hz
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
VARIANTS = (
    *(f"m{number}" for number in range(1, 9)),
    *(f"f{number}" for number in range(1, 6)),
    *("klatt", "klatt2", "klatt3", "klatt4", "adam", "Alicia", "Andy", "Annie", "belinda", "boris", "caleb", "edward"),
)
QUIET = 0.02  # of the peak: what is cut off before and after a phrase


Clip = Callable[[], Samples]  # reads one


@dataclass(frozen=True, slots=True)
class Clips:
    """Those that a share of every batch is drawn from."""

    rows: Rows
    clips: tuple[Clip, ...]


def read_clips(recipe: PretrainRecipe, folders: Sequence[Path], recordings: Recordings) -> list[Clips]:
    """Everything that a recipe hears. Each recording is decoded once, so that faulty ones are named and left out.

    Raises BadDataset: a section finds no audio, or its table is missing or another one; FileNotFoundError: a speech
    synthesiser is not installed.
    """
    found = []
    for section, paths in [(section, _files(section, folders)) for section in recipe.audio]:
        clips = tuple(clip for span in recordings.readable(map(Span, paths)) for clip in _pieces(recordings, span))
        if not clips:
            raise BadDataset(f"none of the {len(paths)} files of audio.files {section.files!r} can be read")
        found.append(Clips(section, clips))
    if (speech := recipe.speech) is not None:
        rng = np.random.default_rng((recipe.seed, 3))
        counts = rng.integers(speech.phrase[0], speech.phrase[1] + 1, speech.clips)
        said = synthesise([" ".join(rng.choice(speech.words, count)) for count in counts], recipe.seed)
        found.append(Clips(speech, tuple(samples.copy for samples in said)))
    return found


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
    return {each for path in found for (each,) in read_lines(path, 1, "file")}


def _pieces(recordings: Recordings, span: Span) -> Iterator[Clip]:
    def piece(start: int) -> Samples:
        return recordings.samples(span)[start : start + PIECE]

    for start in range(0, len(recordings.samples(span)), PIECE):
        yield partial(piece, start)


def synthesise(phrases: Sequence[str], seed: int, threads: int = 2) -> list[Samples]:
    """Say every phrase in a voice of its own: samples `[N]` at 16 kHz, silence before and behind cut off.

    Raises FileNotFoundError: a synthesiser is not installed. subprocess.CalledProcessError: a synthesiser failed.
    """
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if lacking:
        raise FileNotFoundError(f"synthesis needs {' and '.join(lacking)} (Debian packages of these names)")
    rng = np.random.default_rng((seed, 2))
    with TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        paths = [Path(folder) / f"{number}.wav" for number in range(len(phrases))]
        commands = [_command(phrase, path, rng) for phrase, path in zip(phrases, paths, strict=True)]
        list(pool.map(_run, commands))
        return [_trimmed(decode(path.read_bytes()).samples) for path in paths]


def _command(phrase: str, path: Path, rng: Random) -> list[str]:
    """The call that says a phrase in a random voice, pitch and pace."""
    if rng.random() < FLITE_SHARE:
        voice = str(rng.choice(list(FLITE_VOICES)))
        pitch, pace = FLITE_VOICES[voice] * rng.uniform(0.75, 1.35), rng.uniform(0.7, 1.4)
        settings = ("--setf", f"duration_stretch={pace:.2f}", "--setf", f"int_f0_target_mean={pitch:.0f}")
        return ["flite", "-voice", voice, *settings, "-t", phrase, "-o", str(path)]
    voice = f"{rng.choice(ACCENTS)}+{rng.choice(VARIANTS)}"
    pitch, pace = int(rng.integers(15, 90)), int(rng.integers(90, 220))
    return ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(pace), "-w", str(path), phrase]


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)  # fixed program, no shell


def _trimmed(samples: Samples) -> Samples:
    loud = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]
