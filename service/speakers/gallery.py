"""The voiceprints of one domain by one version of an adapter, in memory: who of them does a voice resemble most?

One product of a matrix and a vector finds it: 100,000 voiceprints of 128 numbers take 51 MB and some milliseconds.
"""

import math
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.speakers.vault import Vector

FIRST_ROWS: Final = 256


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who can be found.

    Args:
        references: the merged voiceprint alone, or each enrolment where the best of them counts.
        expires: when they may not be found any more.
    """

    id: str
    references: Sequence[Vector]
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class Found:
    """Who resembles a voice most, best first, among how many."""

    candidates: tuple[tuple[int, str, float], ...]  # the speaker's number, id and cosine
    searched: int


class Gallery:
    """Thread-safe.

    Args:
        dimension: of the embeddings.
    """

    def __init__(self, dimension: int) -> None:
        self.revision = 0  # of the database, that it is in step with
        self.updating = threading.Lock()  # held while it catches up
        self._lock = threading.Lock()
        self._count = 0  # rows in use
        self._vectors = np.zeros((FIRST_ROWS, dimension), np.float32)
        self._owners = np.zeros(FIRST_ROWS, np.int64)
        self._expires = np.zeros(FIRST_ROWS, np.float64)  # seconds since 1970
        self._soonest = math.inf  # before any of them
        self._rows: dict[int, list[int]] = {}  # of each speaker's number
        self._ids: dict[int, str] = {}
        self._numbers: dict[str, int] = {}

    @property
    def bytes(self) -> int:
        """What the vectors take."""
        return self._vectors.nbytes + self._owners.nbytes + self._expires.nbytes

    def update(self, changed: Mapping[int, Person | None]) -> None:
        """Put people in the place of what was known under their numbers; None takes them out."""
        with self._lock:
            for number, person in changed.items():
                self._take_out(number)
                if person is not None:
                    self._put_in(number, person)

    def search(self, voice: Vector, top_k: int, now: datetime, among: Collection[str] | None = None) -> Found:
        """Who resembles `voice` `[dim]`, of length 1, most; `among` these alone, where given."""
        with self._lock:
            rows = slice(0, self._count) if among is None else self._rows_of(among)
            owners, scores = self._owners[rows], self._vectors[rows] @ voice
            if among is None and self._soonest > now.timestamp():
                searched = len(self._rows)
            else:
                is_valid = self._expires[rows] > now.timestamp()
                scores[~is_valid] = -np.inf
                searched = len(np.unique(owners[is_valid]))
            return Found(tuple(self._best(owners, scores, min(top_k, searched))), searched)

    def _best(
        self, owners: NDArray[np.int64], scores: NDArray[np.float32], top_k: int
    ) -> Iterable[tuple[int, str, float]]:
        """The best `top_k` speakers; somebody may have several rows."""
        found: dict[int, float] = {}
        looked_at = 0
        while len(found) < top_k:
            looked_at = min(len(scores), max(4 * top_k, 4 * looked_at))
            best = np.argpartition(scores, len(scores) - looked_at)[len(scores) - looked_at :]
            found = {}
            for row in best[np.argsort(-scores[best], kind="stable")]:
                found.setdefault(int(owners[row]), float(scores[row]))
        for number, score in list(found.items())[:top_k]:
            yield number, self._ids[number], min(1.0, max(-1.0, score))

    def _rows_of(self, ids: Collection[str]) -> NDArray[np.intp]:
        rows = [row for one in dict.fromkeys(ids) if one in self._numbers for row in self._rows[self._numbers[one]]]
        return np.array(rows, np.intp)

    def _put_in(self, number: int, person: Person) -> None:
        until = math.inf if person.expires is None else person.expires.timestamp()
        self._soonest = min(self._soonest, until)
        self._rows[number] = []
        self._ids[number] = person.id
        self._numbers[person.id] = number
        for vector in person.references:
            if self._count == len(self._vectors):
                self._grow()
            row = self._count
            self._vectors[row], self._owners[row], self._expires[row] = vector, number, until
            self._rows[number].append(row)
            self._count += 1

    def _take_out(self, number: int) -> None:
        """The last rows take the place of those that go, and what is left behind is overwritten."""
        known = self._ids.pop(number, None)
        if known is not None and self._numbers.get(known) == number:
            del self._numbers[known]
        for row in sorted(self._rows.pop(number, ()), reverse=True):
            self._count -= 1
            last = self._count
            if row != last:
                owner = int(self._owners[last])
                self._vectors[row], self._owners[row] = self._vectors[last], owner
                self._expires[row] = self._expires[last]
                mine = self._rows[owner]
                mine[mine.index(last)] = row
            self._vectors[last] = 0.0

    def _grow(self) -> None:
        for name in ("_vectors", "_owners", "_expires"):
            old = getattr(self, name)
            grown = np.zeros((2 * len(old), *old.shape[1:]), old.dtype)
            grown[: len(old)] = old
            setattr(self, name, grown)
