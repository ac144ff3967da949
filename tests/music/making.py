"""Makes the set: which work is of which part, which clips are played, their table and its README."""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.music.rendering import (
    FASTEST,
    SOUND_FONT,
    TOGETHER,
    Draw,
    Excerpt,
    check_player,
    draw,
    excerpt,
    moments,
    play,
)
from tests.music.scores import COLLECTIONS, LABELS, MusicSetError, Score, corpus, generator, read_scores
from tests.music.works import united
from tests.synthesis import encode

PARTS = {"train": 220, "selection": 50, "report": 100}  # clips of each class
SHARES = {"train": 0.6, "selection": 0.15, "report": 0.25}  # of the works of a class with one collection
HELD_OUT = 0.2  # of the training works of another class: the selection part
TUNES = 250
COLUMNS = (
    "file", "label", "split", "work", "collection", "source", "title", "quarter",
    "instrument", "onsets", "pitch", "level", "velocity",
)  # fmt: skip
Item = TypeVar("Item")
Track = Callable[[Iterable[Item], str], Iterable[Item]]


@dataclass(frozen=True, slots=True)
class Clip:
    file: str
    split: str
    score: Score
    drawn: Draw
    excerpt: Excerpt

    def row(self) -> tuple[object, ...]:
        score, drawn = self.score, self.drawn
        of_score = (score.work, score.collection, score.source, score.title, f"{self.excerpt.start:g}")
        of_draw = (drawn.instrument, drawn.onsets, drawn.pitch, drawn.level, drawn.velocity)
        return (self.file, score.label, self.split, *of_score, *of_draw)


def split(scores: Sequence[Score], seed: int) -> dict[tuple[str, str], dict[str, list[Score]]]:
    """By class and part, the scores of each work. A collection is on one side where a class has several.

    A work that two classes claim is left out, and so is what a collection of the report part has of a training work.
    """
    side = {(each.name, each.label): each.part for each in COLLECTIONS}
    claims = Counter(work for work, _ in {(score.work, score.label) for score in scores})
    doubtful = {work for work, count in claims.items() if count > 1}
    parts: dict[tuple[str, str], dict[str, list[Score]]] = {}
    for label in sorted({score.label for score in scores}):
        found = [score for score in scores if score.label == label and score.work not in doubtful]
        of_side: dict[str | None, dict[str, list[Score]]] = {"train": {}, "report": {}, None: {}}
        for score in found:
            of_side[side[score.collection, label]].setdefault(score.work, []).append(score)
        train, report, loose = of_side["train"], of_side["report"], of_side[None]
        report = {work: each for work, each in report.items() if work not in train}
        order = generator(seed, "split", label).permutation(sorted([*train, *loose])).tolist()
        held = round((HELD_OUT if train else SHARES["selection"]) * len(order))
        last = len(order) if train else len(order) - round(SHARES["report"] * len(order))
        works = {**train, **loose}
        parts[label, "selection"] = {work: works[work] for work in order[:held]}
        parts[label, "train"] = {work: works[work] for work in order[held:last]}
        parts[label, "report"] = report | {work: works[work] for work in order[last:]}
    return parts


def choose(scores: Sequence[Score], clips: Mapping[str, int], seed: int) -> list[Clip]:
    """The clips: the k-th of a part sounds alike in every class, and every work has its turn before any has two."""
    long_enough = [score for score in scores if len(moments(score)) > FASTEST]
    chosen = []
    for (label, part), works in sorted(split(long_enough, seed).items()):
        if not works:
            raise MusicSetError(f"no score of {label} is left for the {part} part; read more of them")
        order = generator(seed, "order", label, part).permutation(sorted(works)).tolist()
        for number in range(clips[part]):
            rng = generator(seed, label, part, number)
            of_work = works[order[number % len(order)]]
            score, drawn = of_work[int(rng.integers(len(of_work)))], draw(generator(seed, "draw", part, number))
            file = f"clips/{label}-{part}-{number:03}.flac"
            chosen.append(Clip(file, part, score, drawn, excerpt(score, drawn, rng)))
    return chosen


def make_set(
    out: Path,
    seed: int = 1,
    labels: Sequence[str] = LABELS,
    clips: Mapping[str, int] = PARTS,
    tunes: int = TUNES,
    sound_font: Path = SOUND_FONT,
    track: Track = lambda items, _: items,  # type: ignore[type-arg]
) -> list[Clip]:
    """Write the set to a new folder: `clips.csv`, `clips/`, `README.md`. The same arguments make the same files.

    Args:
        clips: of each class, by part.
        tunes: read of a class and a collection, at most.
        track: shows progress over what it is given.

    Raises:
        MusicSetError: something that it needs is missing, or `out` has files.
    """
    if unknown := sorted(set(labels) - set(LABELS)):
        raise MusicSetError(f"no class {unknown[0]!r}; there are {', '.join(LABELS)}")
    if out.exists() and any(out.iterdir()):
        raise MusicSetError(f"{out} has files; name a new folder")
    check_player(sound_font)
    corpus()
    scores = united(list(track(read_scores(labels, tunes, seed), "reading scores")))
    chosen = choose(scores, clips, seed)
    (out / "clips").mkdir(parents=True)
    batches = [chosen[at : at + TOGETHER] for at in range(0, len(chosen), TOGETHER)]
    for batch in track(batches, "playing"):
        played = play([(clip.excerpt, clip.drawn) for clip in batch], sound_font)
        for clip, samples in zip(batch, played, strict=True):
            (out / clip.file).write_bytes(encode(samples, container="flac"))
    with (out / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(clip.row() for clip in chosen)
    (out / "README.md").write_text(readme(chosen, seed), encoding="utf-8")
    return chosen


def readme(chosen: Sequence[Clip], seed: int) -> str:
    """What was made, of what, and under what terms."""
    lines = [
        "# Musical style, rendered",
        "",
        f"Made by `python -m tests.music` with seed {seed} of scores that music21 ships, played by fluidsynth with",
        "Debian's General MIDI sound font (FluidR3, MIT). What is drawn for a clip (instrument, onsets, pitch, level,",
        "velocity) is the same list in every class. `work` is what no split tears.",
        "",
        "| class | part | clips | works | collections |",
        "|---|---|---|---|---|",
    ]
    for label, part in sorted({(clip.score.label, clip.split) for clip in chosen}):
        of_part = [clip for clip in chosen if (clip.score.label, clip.split) == (label, part)]
        collections = ", ".join(sorted({clip.score.collection for clip in of_part}))
        lines.append(f"| {label} | {part} | {len(of_part)} | {len({c.score.work for c in of_part})} | {collections} |")
    terms = {each.name: each.terms for each in COLLECTIONS}
    lines += ["", "| collection | terms of its encoding |", "|---|---|"]
    lines += [f"| {name} | {terms[name]} |" for name in sorted({clip.score.collection for clip in chosen})]
    return "\n".join([*lines, ""])
