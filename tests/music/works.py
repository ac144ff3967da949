"""Which scores are of one work: the same tune in two books, two versions of a piece. By titles and by shared melody."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise

from tests.music.scores import Score

GRAM = 12  # intervals in a row, whatever the key; of traditional tunes 8 still are anybody's
SHARED = 0.15  # of the fewer grams of two scores: from there on they are one work
COMMON = 12  # scores that may share a gram before it says nothing
FILLERS = re.compile(r"\b(the|a|an|reel|jig|hornpipe|clog|air|no|as played by.*)\b|--.*|[^a-z0-9 ]")


def plain(title: str) -> str:
    return " ".join(FILLERS.sub("", title.lower()).split())


def grams(score: Score) -> set[tuple[int, ...]]:
    """Runs of intervals of each part's highest notes."""
    found = set()
    for part in score.parts:
        line = [pitch for _, pitch in sorted({note.onset: note.pitch for note in part}.items())]  # the highest is last
        steps = [after - before for before, after in pairwise(line)]
        found |= {run for at in range(len(steps) - GRAM + 1) if len(set(run := tuple(steps[at : at + GRAM]))) > 2}
    return found


def united(scores: Sequence[Score]) -> list[Score]:
    """The scores with one `work` for each group, that of its first."""
    leader = {score.work: score.work for score in scores}

    def find(work: str) -> str:
        while leader[work] != work:
            work = leader[work]
        return work

    def unite(one: str, other: str) -> None:
        first, second = sorted((find(one), find(other)))
        leader[second] = first

    found = [grams(score) for score in scores]
    holders: dict[tuple[int, ...], list[int]] = {}
    for index, each in enumerate(found):
        for gram in each:
            holders.setdefault(gram, []).append(index)
    shared = Counter(pair for held in holders.values() if len(held) <= COMMON for pair in combinations(held, 2))
    for (one, other), count in shared.items():
        if count >= SHARED * min(len(found[one]), len(found[other])):
            unite(scores[one].work, scores[other].work)
    titled: dict[str, str] = {}
    for score in scores:
        if ".abc" in score.source and (name := plain(score.title)):
            unite(titled.setdefault(name, score.work), score.work)
    return [replace(score, work=find(score.work)) for score in scores]
