"""Words spoken by the speech synthesisers espeak-ng and flite: more voices than a corpus has. Knows no model.

Formants, pitch, pace and accent of a synthesiser vary without end, which teaches what in a word does not depend on who
says it. Where few people speak a word, a backbone learns from it in pre-training, and an adapter beside its recordings.
"""

import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from service.audio.decode import DecodeLimits, decode
from service.training.augment import narrowed

Random = np.random.Generator
Samples = NDArray[np.float32]

PROGRAMS = ("espeak-ng", "flite")
FLITE_SHARE = 0.35  # of the clips: few voices, but recorded from people
FLITE_VOICES = {"awb": 125, "kal": 105, "kal16": 105, "rms": 100, "slt": 170}  # name: usual pitch, Hz
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
VARIANTS = (
    *(f"m{number}" for number in range(1, 9)),
    *(f"f{number}" for number in range(1, 6)),
    *("klatt", "klatt2", "klatt3", "klatt4", "adam", "Alicia", "Andrea", "Andy", "Annie", "aunty", "belinda"),
    *("benjamin", "boris", "caleb", "david", "ed", "edward", "Gene", "grandma", "grandpa", "gustave", "Hugo"),
    *("iven", "Jacky", "john", "kaukovalta", "Lee", "linda", "Marco", "Mario", "max", "Michael", "michel"),
    *("miguel", "Mike", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby"),
    *("steph", "travis", "victor", "zac"),
)
QUIET = 0.02  # of the peak: what is cut off before and after a word


def synthesise(
    words: Sequence[str], clips: int, seed: int, *, telephone: float = 0.0, threads: int = 2
) -> list[tuple[str, Samples]]:
    """Say every word in turn, each time in another voice, until there are `clips` of them.

    Args:
        telephone: chance of a clip to be cut off at 4 kHz.

    Returns:
        Each word with its samples `[N]` at 16 kHz, silence before and behind cut off.

    Raises:
        FileNotFoundError: a synthesiser is not installed.
        subprocess.CalledProcessError: a synthesiser failed.
    """
    _require(PROGRAMS)
    rng = np.random.default_rng((seed, 2))
    spoken = [words[number % len(words)] for number in range(clips)]
    with TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        paths = [Path(folder) / f"{number}.wav" for number in range(clips)]
        commands = [_command(word, path, rng) for word, path in zip(spoken, paths, strict=True)]
        list(pool.map(_run, commands))
        samples = [_trimmed(decode(path.read_bytes(), DecodeLimits()).samples) for path in paths]
    narrow = rng.random(clips) < telephone
    return [(word, narrowed(each) if cut else each) for word, each, cut in zip(spoken, samples, narrow, strict=True)]


def _require(programs: Sequence[str]) -> None:
    lacking = [program for program in programs if shutil.which(program) is None]
    if lacking:
        raise FileNotFoundError(f"synthesis needs {' and '.join(lacking)} (Debian packages of these names)")


def _command(word: str, path: Path, rng: Random) -> list[str]:
    """The call that says a word in a random voice, pitch and pace."""
    if rng.random() < FLITE_SHARE:
        voice = str(rng.choice(list(FLITE_VOICES)))
        pitch = FLITE_VOICES[voice] * rng.uniform(0.75, 1.35)
        settings = (
            "--setf",
            f"duration_stretch={rng.uniform(0.7, 1.4):.2f}",
            "--setf",
            f"int_f0_target_mean={pitch:.0f}",
        )
        return ["flite", "-voice", voice, *settings, "-t", word, "-o", str(path)]
    voice = f"{rng.choice(ACCENTS)}+{rng.choice(VARIANTS)}"
    pitch, pace = int(rng.integers(15, 90)), int(rng.integers(90, 220))
    return ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(pace), "-w", str(path), word]


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)  # fixed program, no shell


def _trimmed(samples: Samples) -> Samples:
    loud = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]
