"""Batches that run in halves: whatever fits, every job gets all of its rows, in their order."""

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.engine.cost import Headroom
from service.engine.faults import Fault
from service.engine.job import Rows, Values
from service.engine.runner import rows_of, run_in_halves
from tests.engine.simulation import job


def batch_of(counts: Sequence[int]) -> list[Rows]:
    jobs = [job(f"adapter-{i}", frames=count) for i, count in enumerate(counts)]
    for at, (one, count) in enumerate(zip(jobs, counts, strict=True)):
        one.rows, one.inputs = count, np.arange(count, dtype=np.float32) + 100 * at
    return [Rows(one, slot, 0, one.rows) for slot, one in enumerate(jobs, start=1)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 20))
def test_every_row_runs_once_and_answers_come_whole(counts: list[int], room: int) -> None:
    batch, ran, refused = batch_of(counts), [], []

    def run(part: Sequence[Rows]) -> list[Values]:
        if rows_of(part) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        ran.append(rows_of(part))
        return [np.asarray(rows.inputs, np.float32) for rows in part]

    outcomes = run_in_halves(run, batch, lambda fault, part: refused.append((fault, rows_of(part))))
    assert len(outcomes) == len(batch)
    assert all(fault is Fault.MEMORY and rows > room for fault, rows in refused)
    if room == 0:
        assert set(outcomes) == {Fault.MEMORY}
        return
    assert sum(ran) == sum(counts)
    for rows, outcome in zip(batch, outcomes, strict=True):
        assert np.array_equal(outcome, rows.inputs)
    assert len(refused) < 2 * sum(counts)


def test_what_fails_for_another_reason_is_halved_once_and_fails_alone() -> None:
    batch = batch_of([1, 2, 1, 1])

    def run(part: Sequence[Rows]) -> list[Values]:
        if any(rows.slot == 3 for rows in part):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return [np.asarray(rows.inputs, np.float32) for rows in part]

    outcomes = run_in_halves(run, batch, lambda fault, part: None)
    assert [isinstance(outcome, Fault) for outcome in outcomes] == [False, False, True, True]


def test_headroom_is_halved_at_once_and_comes_back_slowly() -> None:
    headroom = Headroom(1000)
    headroom.refused(800)
    assert headroom.nbytes == 400
    headroom.refused(800)  # the other half of a batch, which was as large
    assert headroom.nbytes == 400
    headroom.refused(1)
    assert headroom.nbytes == 1  # never nothing
    headroom = Headroom(1000)
    headroom.refused(800)
    headroom.fitted(10)  # says nothing
    assert headroom.nbytes == 400
    batches = 0
    while headroom.nbytes < 1000:
        headroom.fitted(int(headroom.nbytes))
        batches += 1
    assert 30 < batches < 100
    headroom.fitted(1000)
    assert headroom.nbytes == 1000
