"""Words spoken by the speech synthesisers espeak-ng and flite: more voices than the corpora have. Knows no model.

Four people speak the English digits of the corpora. Formants, pitch, pace and accent of a synthesiser vary without
end, which teaches a backbone what in a word does not depend on who says it.
"""

import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from service.training.pretraining.corpus import Clip, decode_file

Random = np.random.Generator

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


def synthesise(words: Sequence[str], clips: int, seed: int, threads: int = 2) -> tuple[Clip, ...]:
    """Say every word in turn, each time in another voice, until there are `clips` of them.

    Raises:
        FileNotFoundError: a synthesiser is not installed.
        subprocess.CalledProcessError: a synthesiser failed.
    """
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if lacking:
        raise FileNotFoundError(f"synthesis needs {' and '.join(lacking)} (Debian packages of these names)")
    rng = np.random.default_rng((seed, 2))
    spoken = [words[number % len(words)] for number in range(clips)]
    with TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        paths = [Path(folder) / f"{number}.wav" for number in range(clips)]
        commands = [_command(word, path, rng) for word, path in zip(spoken, paths, strict=True)]
        list(pool.map(_run, commands))
        samples = [_trimmed(decode_file(path)) for path in paths]
    return tuple(Clip(each, "words", f"en:{word}", "synthesised") for each, word in zip(samples, spoken, strict=True))


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


def _trimmed(samples: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > QUIET * np.abs(samples.astype(np.int32)).max())
    return samples[loud[0] : loud[-1] + 1]
