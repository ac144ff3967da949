"""Before anything is timed: contestants that should compute the same do. Knows no clocks."""

from dataclasses import dataclass

from torch import Tensor

from tests.benchmarks.contestants import AUTHORS, BARE, ENGINE, INT8, REQUESTS, SWAP_EACH, SWAP_SORTED, Contestant

# `max |a - b| / max |b|` on random weights of base size: float32 against another order of sums; half precision as in
# tests/model/test_kernels.py; 8-bit weights as a bound on nonsense: `ipet evaluate --weights int8` measures their cost.
_TOLERANCES = {"float32": 1e-4, INT8: 0.3}
_HALF_TOLERANCE = 3e-2


@dataclass(frozen=True, slots=True)
class Agreement:
    """`max |a - b| / max |b|` between two contestants, and what it may be."""

    cell: str
    name: str
    against: str
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance


def compare(cell: str, entries: list[Contestant]) -> list[Agreement]:
    """Every contestant but PEFT, which computes something else, against an independent one on the same rows.

    One adapter in a batch and the swappers' requests against the authors' form; no adapter against the bare backbone;
    a mixed batch against the authors' form in its first row and against the engine's own float32 in all rows.
    """
    outputs = {entry.name: entry.run().float() for entry in entries}
    authors, each, bare = (_named(entries, form) for form in (AUTHORS, SWAP_EACH, BARE))
    pairs = [(_named(entries, SWAP_SORTED), each)]
    for entry in entries:
        if entry.form == REQUESTS:
            pairs.append((entry, each))
        elif entry.form == ENGINE:
            pairs.append((entry, authors if entry.adapters else bare))
            exact = (e for e in entries if (e.form, e.dtype, e.adapters) == (ENGINE, "float32", entry.adapters))
            pairs.extend((entry, yardstick) for yardstick in exact if yardstick is not entry)
    found = []
    for entry, yardstick in pairs:
        rows = 1 if yardstick is authors and entry.adapters > 1 else min(entry.clips, yardstick.clips)
        error = _error(outputs[entry.name][:rows], outputs[yardstick.name][:rows])
        found.append(Agreement(cell, entry.name, yardstick.name, error, _TOLERANCES.get(entry.dtype, _HALF_TOLERANCE)))
    return found


def _named(entries: list[Contestant], form: str) -> Contestant:
    return next(entry for entry in entries if entry.form == form)


def _error(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())
