"""Backbones that fail when a test says so, the seam through which device faults are brought in; files that hang."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from service.model.backbone import Backbone

if sys.platform == "linux":
    import fcntl

needs_leases = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has leases on files")
Fault = Callable[[int], None]


class Faulty:
    """A backbone before whose every forward `fault` is called with the number of rows: it may raise or wait."""

    fault: Fault
    slots: Sequence[int] = ()  # of the latest forward, for faults that only some rows have

    def forward(self, inputs: Any, bank: Any, slots: Any, *rest: Any) -> Any:
        self.slots = slots
        self.fault(len(slots))
        return super().forward(inputs, bank, slots, *rest)  # type: ignore[misc]

    def answer(self, inputs: Any, bank: Any, slots: Any, *rest: Any) -> Any:
        self.slots = slots
        self.fault(len(slots))
        return super().answer(inputs, bank, slots, *rest)  # type: ignore[misc]


def faulty(backbone: Backbone, fault: Fault = lambda rows: None) -> Any:
    """`backbone` with a `fault` that can be set."""
    kind: Any = type("Faulty", (Faulty, type(backbone)), {})
    copied = kind.__new__(kind)
    vars(copied).update(vars(backbone), fault=fault)
    return copied


class Hang:
    """A device that does not come back until it is released."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()

    def __call__(self, rows: int) -> None:
        self.begun.set()
        assert self.released.wait(30)


class Memory:
    """A device that has room for so many rows at once; notes what it refused."""

    def __init__(self, rows: int, error: Exception | None = None) -> None:
        self.rows = rows
        self.refused: list[int] = []
        self._error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def __call__(self, rows: int) -> None:
        if rows > self.rows:
            self.refused.append(rows)
            raise self._error


class Cuda:
    """Fails as CUDA does: out of memory beyond so many rows, and for good once something has killed its context."""

    DEAD = (
        "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported at "
        "some other API call, so the stacktrace below might be incorrect."
    )

    def __init__(self, rows: int = 1000) -> None:
        self.memory = Memory(rows)
        self.is_dead = False
        self.asked = 0

    def __call__(self, rows: int) -> None:
        self.asked += 1
        if self.is_dead:
            raise torch.AcceleratorError(self.DEAD)
        self.memory(rows)


class HungFile:
    """A file that nobody can open until `close`, as on a disk that does not: it is under a lease.

    The kernel would break the lease after 45 s (`/proc/sys/fs/lease-break-time`).
    """

    def __init__(self, path: Path) -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # which tells that somebody wants it
        self._descriptor = os.open(path, os.O_RDONLY)
        fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def close(self) -> None:
        os.close(self._descriptor)
