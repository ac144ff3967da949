"""What is done again and again goes on whatever happens, and says since when it fails."""

import logging
import threading

import pytest

from service.errors import RegistryUnavailable
from service.routine import Routine


def test_a_fault_is_told_once_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    faults: list[Exception | None] = [None, RegistryUnavailable("away"), RegistryUnavailable("still away"), None]

    def work() -> None:
        if fault := faults.pop(0):
            raise fault

    routine = Routine("looking", work)
    seen = []
    with caplog.at_level(logging.INFO):
        for _ in range(4):
            routine.once()
            seen.append(routine.fault)
    assert (seen[0], seen[3]) == (None, None)
    assert seen[1] == seen[2]
    assert (seen[1] or "").startswith("since ")
    assert (seen[1] or "").endswith(": away")
    assert [record.getMessage() for record in caplog.records] == ["looking fails: away", "looking works again"]


def test_an_error_that_nobody_foresaw_is_logged_and_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    faults: list[Exception] = [ValueError("unforeseen")]
    turns: list[bool] = []
    done = threading.Event()

    def work() -> None:
        if faults:
            raise faults.pop()

    def turned(is_well: bool) -> None:
        turns.append(is_well)
        if is_well:
            done.set()

    routine = Routine("looking", work)
    routine.start(0.01, turned)
    assert done.wait(10)
    routine.stop()
    assert turns[:2] == [False, True]
    assert "ValueError: unforeseen" in caplog.text
    count = len(turns)
    assert not threading.Event().wait(0.05)
    assert len(turns) == count


def test_what_hangs_is_not_waited_for_longer_than_asked() -> None:
    released = threading.Event()
    routine = Routine("hanging", lambda: released.wait(30) and None)
    routine.start(0.01)
    routine.stop(seconds=0.05)
    released.set()
    routine.stop()
