"""Notes of ABC and MusicXML: ties as one note, no grace notes, repeats not played.

ABC is taken apart by music21. MusicXML is read here, in a hundredth of the time that a music21 stream of it takes.
"""

import math
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
NEAR = 1e-3  # quarters


@dataclass(frozen=True, slots=True)
class Note:
    onset: float  # quarters from the beginning
    length: float
    pitch: int  # MIDI's


@dataclass(frozen=True, slots=True)
class Written:
    """A note as it is written, `tied` to the one before where it goes on."""

    note: Note
    tied: bool


def tune_notes(text: str) -> tuple[Note, ...]:
    """Of one tune in ABC. Raises what music21 raises where it is not."""
    from music21.abcFormat import ABCChord, ABCHandler, ABCNote
    from music21.pitch import Pitch

    def written() -> Iterator[Written]:
        now = 0.0
        for token in handler.tokens:
            if not isinstance(token, ABCNote) or token.inGrace:
                continue
            tuplet = token.activeTuplet
            length = float(token.quarterLength * (tuplet.tupletMultiplier() if tuplet else 1))
            singles = token.subTokens if isinstance(token, ABCChord) else [token]
            for single in singles:
                if isinstance(single, ABCNote) and not single.isRest:
                    pitch = int(Pitch(single.pitchName).midi)
                    yield Written(Note(now, length, pitch), token.tie in ("continue", "stop"))
            now += length

    handler = ABCHandler()
    handler.process(text)
    return joined(written())


def part_notes(path: Path) -> list[tuple[Note, ...]]:
    """Of each part of a MusicXML file, packed (`.mxl`) or not."""
    content = path.read_bytes()
    if path.suffix == ".mxl":
        with zipfile.ZipFile(path) as packed:
            inside = [name for name in packed.namelist() if name.endswith("xml") and not name.startswith("META-INF")]
            content = packed.read(inside[0])
    parts = [list(_measures(part.iter("measure"))) for part in ElementTree.fromstring(content).iter("part")]
    lengths = [max(length for _, length in row) for row in zip_longest(*parts, fillvalue=([], 0.0))]
    begins = [0.0, *accumulate(lengths)]
    return [
        joined(
            Written(Note(begin + one.note.onset, one.note.length, one.note.pitch), one.tied)
            for begin, (found, _) in zip(begins, part, strict=False)
            for one in found
        )
        for part in parts
    ]


def _measures(measures: Iterable[Element]) -> Iterator[tuple[list[Written], float]]:
    """Each measure's notes, from its own beginning, and its length: rests beyond the bar are slips of an export."""
    divisions, bar = 1.0, math.inf
    for measure in measures:
        found: list[Written] = []
        now = onset = end = sounding = 0.0
        for element in measure:
            if element.tag == "attributes":
                divisions = float(element.findtext("divisions") or divisions)
                beats, unit = element.findtext("time/beats") or "", element.findtext("time/beat-type") or ""
                bar = 4 * int(beats) / int(unit) if beats.isdigit() and unit.isdigit() else bar
            length = float(element.findtext("duration") or 0.0) / divisions
            if element.tag == "backup":
                now -= length
            elif element.tag == "forward":
                now += length
            elif element.tag == "note" and element.find("grace") is None and element.find("cue") is None:
                if element.find("chord") is None:
                    onset, now = now, now + length
                pitch = element.find("pitch")
                if pitch is not None and length > 0:
                    ties = {tie.get("type") for tie in element.iter("tie")}
                    found.append(Written(Note(onset, length, _midi(pitch)), "stop" in ties))
                    sounding = max(sounding, now)
            end = max(end, now)
        yield found, min(end, max(bar, sounding))


def _midi(pitch: Element) -> int:
    octave, alter = int(pitch.findtext("octave") or 4), float(pitch.findtext("alter") or 0)
    return 12 * (octave + 1) + STEPS[pitch.findtext("step") or "C"] + round(alter)


def joined(written: Iterable[Written]) -> tuple[Note, ...]:
    """Notes by onset and pitch, tied ones as one."""
    found: list[Note] = []
    last: dict[int, int] = {}  # pitch -> where its last note stands
    for one in written:
        note, before = one.note, last.get(one.note.pitch)
        if one.tied and before is not None and abs(found[before].onset + found[before].length - note.onset) < NEAR:
            found[before] = Note(found[before].onset, found[before].length + note.length, note.pitch)
        else:
            last[note.pitch] = len(found)
            found.append(note)
    return tuple(sorted(found, key=lambda note: (note.onset, note.pitch)))
