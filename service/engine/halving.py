"""Runs a batch, in halves where the device has no room for all of it, down to single rows."""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from service.engine.faults import Fault, fault_of
from service.engine.job import Rows, Values

Run = Callable[[Sequence[Rows]], Sequence[Values]]
Outcome = Values | Fault

_log = logging.getLogger(__name__)


def run_in_halves(
    run: Run, batch: Sequence[Rows], on_fault: Callable[[Fault, Sequence[Rows]], None], may_halve: bool = True
) -> list[Outcome]:
    """What `run` answers of each part of a batch, or why it could not.

    Args:
        on_fault: called after each run that failed, when nothing that it had allocated is held any more.
        may_halve: whether a batch that failed for want of anything but memory is tried in two halves, by jobs, so that
            what fails again fails alone.
    """
    try:
        return list(run(batch))
    except Exception as error:
        fault = fault_of(error)
        _log.exception("a batch failed on the device", extra={"jobs": len(batch), "rows": rows_of(batch)})
    on_fault(fault, batch)  # only now: within the handler, the error's trace holds all that the forward had allocated
    halves: tuple[Sequence[Rows], Sequence[Rows]]
    if fault is Fault.MEMORY:
        halves = _split(batch, rows_of(batch) // 2)
    elif may_halve:
        halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
    else:
        return [fault] * len(batch)
    if not halves[0] or not halves[1]:
        return [fault] * len(batch)
    first, second = (run_in_halves(run, half, on_fault, may_halve=False) for half in halves)
    if halves[0][-1].job is not halves[1][0].job:
        return first + second
    return [*first[:-1], _joined(first[-1], second[0]), *second[1:]]


def rows_of(batch: Sequence[Rows]) -> int:
    return sum(part.count for part in batch)


def _split(batch: Sequence[Rows], at: int) -> tuple[list[Rows], list[Rows]]:
    """The first `at` rows of a batch and the others; a job may be cut."""
    first: list[Rows] = []
    for index, part in enumerate(batch):
        if part.count > at:
            rest = [Rows(part.job, part.slot, part.start + at, part.count - at), *batch[index + 1 :]]
            return ([*first, Rows(part.job, part.slot, part.start, at)] if at else first), rest
        first.append(part)
        at -= part.count
    return first, []


def _joined(first: Outcome, second: Outcome) -> Outcome:
    if isinstance(first, Fault):
        return first
    return second if isinstance(second, Fault) else np.concatenate((first, second))
