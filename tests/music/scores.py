"""Reads scores of the music21 corpus as notes, by style. What is read, and under what terms: `COLLECTIONS`.

Only encodings without a notice against any use are read. Left out for theirs: Bach's chorales ("PDF © 2004 Margaret
Greentree, used by permission"; her site kept commercial use to itself), Palestrina's masses ("rights to all derivative
electronic formats reserved"), Essen's folk songs ("non-commercial distribution and use"), Monteverdi's fifth book
("© Ut Orpheus Edizioni 2003"), Aird's airs and the Northumbrian minstrelsy (their encoder sold them), Josquin (GPL).
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.music.notation import Note, part_notes, tune_notes


class MusicSetError(Exception):
    """The set cannot be made; the message says what is missing and how to have it."""


@dataclass(frozen=True, slots=True)
class Score:
    """A tune, a madrigal or a movement. `work` is what no split may tear."""

    label: str
    collection: str
    work: str
    source: str  # the file, seen from the corpus
    title: str
    parts: tuple[tuple[Note, ...], ...]  # by onset


@dataclass(frozen=True, slots=True)
class Collection:
    name: str
    label: str
    files: str  # pattern, seen from the corpus
    part: str | None  # training or report; none where a class has one collection only, which is split by work
    terms: str


TRANSCRIBED = "public domain; transcribers named in the files, who ask for nothing"
SILENT = "music in the public domain; the files say nothing of terms"
ONEILL, RYAN = "O'Neill's Music of Ireland (1903)", "Ryan's Mammoth Collection (1883)"
COLLECTIONS = (
    Collection(ONEILL, "dance", "oneills1850/*.abc", "train", TRANSCRIBED),
    Collection(RYAN, "dance", "ryansMammoth/*.abc", "report", TRANSCRIBED),
    Collection(ONEILL, "air", "oneills1850/*.abc", None, TRANSCRIBED),
    Collection("Monteverdi, books 3 and 4", "madrigal", "monteverdi/madrigal.[34].*.mxl", None, SILENT),
    *(
        Collection(f"PMFC {volume}", "trecento", f"trecento/PMFC_{volume}*", part, SILENT)
        for part, volumes in (("train", ("01", "04", "12", "13", "24")), ("report", ("06", "23")))
        for volume in volumes
    ),
    Collection("Beethoven", "quartet", "beethoven/**/*.mxl", "train", SILENT),
    Collection("Schumann", "quartet", "schumann_robert/opus41no1/*.mxl", "train", SILENT),
    Collection("Haydn", "quartet", "haydn/opus*/*.mxl", "report", SILENT),
    Collection("Mozart", "quartet", "mozart/k[148][058]*/movement?.mxl", "report", SILENT),
)
LABELS = tuple(sorted({collection.label for collection in COLLECTIONS}))
SECTIONS = {
    "air": range(1, 626),
    "dance": (*range(701, 1116), *range(1176, 1781)),
}  # of O'Neill's: jigs, reels, hornpipes
DANCES = ("hornpipe", "jig", "reel")
CYCLES = {"3.8": range(8, 11), "3.15": range(15, 18), "3.19": range(19, 21)}  # madrigals in several parts
DOUBLES = re.compile(r"_old\.|_bak\.|PMFC_13_0[12].*\.mxl$")


def generator(seed: int, *names: object) -> np.random.Generator:
    """Random numbers that follow from the seed and the names alone."""
    return np.random.default_rng((seed, *(zlib.crc32(str(name).encode()) for name in names)))


def corpus() -> Path:
    """The folder of scores. Raises MusicSetError."""
    try:
        import music21
    except ImportError:
        raise MusicSetError("the scores are music21's: pip install 'music21>=10.5,<11'") from None
    root = Path(music21.__file__).parent / "corpus"
    if not (root / "oneills1850").is_dir():
        raise MusicSetError(f"{root} has no scores; music21 from PyPI has")
    return root


def read_scores(labels: Sequence[str], tunes: int, seed: int) -> Iterator[Score]:
    """Scores that music21 can read and that have notes.

    Args:
        tunes: how many at most of a label and a collection, of tunes (drawn) and of other works (the smallest files).
    """
    root = corpus()
    for collection in COLLECTIONS:
        if collection.label not in labels:
            continue
        label, files = collection.label, sorted(p for p in root.glob(collection.files) if not DOUBLES.search(p.name))
        if collection.files.endswith(".abc"):
            found = [tune for path in files for tune in _tunes(path, root, label, collection.name)]
            drawn = generator(seed, collection.name, label).permutation(len(found))[:tunes]
            made = (_score(text, **named) for text, named in (found[index] for index in sorted(drawn)))
        else:
            files = sorted(sorted(files, key=lambda path: path.stat().st_size)[:tunes])
            made = (_score(path, **_named(path, root, label, collection.name)) for path in files)
        yield from (score for score in made if score is not None)


def _tunes(path: Path, root: Path, label: str, collection: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each tune of that label in an ABC file, and what is known of it."""
    for text in re.split(r"(?m)^(?=X:)", path.read_text("latin1"))[1:]:
        fields = {key: value.strip() for key, value in re.findall(r"(?m)^([A-Z]): *(.*)$", text)}
        number = int(re.match(r"\d+", fields["X"])[0])  # type: ignore[index]  # every tune has one
        if number in SECTIONS[label] if collection == ONEILL else fields.get("R", "").lower() in DANCES:
            source = path.relative_to(root).as_posix()
            title = next(iter(re.findall(r"(?m)^T: *(.*)$", text)), "").strip()
            work = f"{source}:{number}"
            yield text, {"label": label, "collection": collection, "work": work, "source": work, "title": title}


def _named(path: Path, root: Path, label: str, collection: str) -> dict[str, str]:
    source = path.relative_to(root).as_posix()
    work = source.removesuffix(path.suffix)
    if label == "quartet":
        work = re.sub(r"/movement\d.*", "", work)
    elif label == "madrigal":
        book, number = work.split(".")[1:]
        work = next(
            (each for each, parts in CYCLES.items() if book == "3" and int(number) in parts), f"{book}.{number}"
        )
        work = f"monteverdi/madrigal.{work}"
    return {"label": label, "collection": collection, "work": work, "source": source, "title": path.stem}


def _score(given: Path | str, **named: str) -> Score | None:
    """None where it cannot be read, or has no notes."""
    try:
        parts = [tune_notes(given)] if isinstance(given, str) else part_notes(given)
    except Exception:  # what music21 raises depends on what it meets
        return None
    kept = tuple(part for part in parts if part)
    return Score(parts=kept, **named) if kept else None
