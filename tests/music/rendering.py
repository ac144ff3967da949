"""Plays excerpts of scores by fluidsynth: what is drawn for a clip, its notes in seconds, MIDI, 16 kHz mono.

A clip's instrument, speed, height and loudness are drawn without regard to its class, and hold whatever the score is:
its notes begin at `onsets` moments in `SECONDS`, whatever a quarter is worth in it, and are moved by semitones until
their mean height is `pitch`. So neither tempo nor key nor register tells a class; rhythm, lines and harmony may.
"""

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.audio.decode import decode
from tests.music.notation import Note
from tests.music.scores import MusicSetError, Score

SECONDS = 8.0
GAP = 4.0  # between two clips of one rendering, for what rings on
RATE, PLAYED_AT = 16_000, 32_000
TOGETHER = 20  # clips of one rendering: the sound font takes longer to load than a clip to play
SOUND_FONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
PROGRAMS = {  # General MIDI's, from 0
    "piano": 0, "harpsichord": 6, "vibraphone": 11, "organ": 19, "accordion": 21, "guitar": 24, "violin": 40,
    "harp": 46, "strings": 48, "choir": 52, "trumpet": 56, "oboe": 68, "clarinet": 71, "flute": 73, "recorder": 74,
    "ocarina": 79,
}  # fmt: skip
FASTEST = 48  # onsets of a clip; scores with fewer are left out
SLOWEST = 16
LEGATO = 0.95  # of a note's length sounds
TICKS = 960  # of MIDI, a second


@dataclass(frozen=True, slots=True)
class Draw:
    """What a clip sounds like, whatever is played."""

    instrument: str
    onsets: int  # moments at which notes begin
    pitch: float  # mean of the notes, weighted by their length; MIDI's
    level: float  # root mean square, dB of full scale
    velocity: int


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Notes of a clip: onset and length in seconds, pitch."""

    start: float  # in the score, quarters
    notes: tuple[Note, ...]


def draw(rng: np.random.Generator) -> Draw:
    return Draw(
        instrument=str(rng.choice(list(PROGRAMS))),
        onsets=round(float(np.exp(rng.uniform(np.log(SLOWEST), np.log(FASTEST))))),
        pitch=round(float(rng.uniform(58, 70)), 2),
        level=round(float(rng.uniform(-34, -22)), 1),
        velocity=int(rng.integers(60, 111)),
    )


def moments(score: Score) -> list[float]:
    """When notes begin, quarters."""
    return sorted({round(note.onset, 3) for part in score.parts for note in part})


def excerpt(score: Score, drawn: Draw, rng: np.random.Generator) -> Excerpt:
    """A stretch of the score from some onset to the one that is `drawn.onsets` later, as long as a clip."""
    begins = moments(score)
    first = int(rng.integers(len(begins) - drawn.onsets))
    start, end = begins[first], begins[first + drawn.onsets]
    scale = SECONDS / (end - start)
    heard = [note for part in score.parts for note in part if start <= round(note.onset, 3) < end]
    lengths = np.array([min(note.length, end - note.onset) for note in heard])
    shift = round(drawn.pitch - float(np.average([note.pitch for note in heard], weights=lengths)))
    notes = (
        Note((note.onset - start) * scale, length * scale * LEGATO, note.pitch + shift)
        for note, length in zip(heard, lengths, strict=True)
    )
    return Excerpt(start, tuple(sorted(notes, key=lambda note: (note.onset, note.pitch))))


def midi(clips: Sequence[tuple[Excerpt, Draw]]) -> bytes:
    """A MIDI file (format 0) in which clip i begins at `i * (SECONDS + GAP)`."""
    events: list[tuple[int, int, bytes]] = []  # tick, order, message
    for index, (given, drawn) in enumerate(clips):
        begin = round(index * (SECONDS + GAP) * TICKS)
        events.append((begin, 0, bytes((0xC0, PROGRAMS[drawn.instrument]))))
        last: dict[int, int] = {}  # pitch -> when it is let go: two voices may meet in one key
        for note in sorted(given.notes, key=lambda note: (note.onset, -note.length)):
            if not 0 <= note.pitch < 128:
                continue
            on = begin + round(note.onset * TICKS)
            off = max(on + 1, begin + round((note.onset + note.length) * TICKS))
            if last.get(note.pitch, -1) >= on:
                continue
            last[note.pitch] = off
            events += [(on, 2, bytes((0x90, note.pitch, drawn.velocity))), (off, 1, bytes((0x80, note.pitch, 0)))]
    track, now = bytearray(b"\x00\xff\x51\x03" + (500_000).to_bytes(3, "big")), 0
    for tick, _, message in sorted(events):
        track += _varying(tick - now) + message
        now = tick
    track += _varying(TICKS * int(GAP)) + b"\xff\x2f\x00"
    head = b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS // 2)
    return head + b"MTrk" + struct.pack(">I", len(track)) + bytes(track)


def _varying(value: int) -> bytes:
    """MIDI's number of varying length."""
    found = [value & 0x7F]
    while value := value >> 7:
        found.append(0x80 | (value & 0x7F))
    return bytes(reversed(found))


def check_player(sound_font: Path) -> None:
    """Raises MusicSetError where nothing can be played."""
    if shutil.which("fluidsynth") is None:
        raise MusicSetError("fluidsynth plays the scores: apt install fluidsynth")
    if not sound_font.is_file():
        raise MusicSetError(
            f"no sound font at {sound_font}: apt install fluid-soundfont-gm, or name one by --sound-font"
        )


def play(clips: Sequence[tuple[Excerpt, Draw]], sound_font: Path) -> list[NDArray[np.float32]]:
    """Each clip's samples `[SECONDS * RATE]`, at its level. Raises MusicSetError."""
    with tempfile.TemporaryDirectory(prefix="ipet-music-") as folder:
        score, sound = Path(folder) / "score.mid", Path(folder) / "sound.wav"
        score.write_bytes(midi(clips))
        options = ["-niq", "-r", str(PLAYED_AT), "-g", "0.3", "-T", "wav", "-O", "float", "-F", str(sound)]
        done = subprocess.run(["fluidsynth", *options, str(sound_font), str(score)], capture_output=True, text=True)
        if done.returncode or not sound.is_file():
            raise MusicSetError(f"fluidsynth failed: {(done.stderr or done.stdout).strip()[-500:]}")
        samples = decode(sound.read_bytes()).samples  # one channel, at 16 kHz
    length, step = round(SECONDS * RATE), round((SECONDS + GAP) * RATE)
    return [_levelled(samples[at * step :][:length], drawn.level) for at, (_, drawn) in enumerate(clips)]


def _levelled(samples: NDArray[np.float32], level: float) -> NDArray[np.float32]:
    """At that root mean square, dB of full scale."""
    return samples * np.float32(10 ** (level / 20) / np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
