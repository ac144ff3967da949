"""The one noun that crosses a device: some windows of one clip, to be read by one adapter. Knows no tensors."""

import time
from collections.abc import Hashable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.registry.store import AdapterVersion

FRAME_SECONDS = 0.01  # of `window_frames`

Values = NDArray[np.float32]
AdapterKey = tuple[str, int]  # an AdapterVersion's


def flow_of(name: str, patient: bool) -> str:
    """Whom fairness counts the work of an adapter to."""
    return f"{name} (recordings)" if patient else name


@dataclass(slots=True, eq=False)
class Job:
    """Rows of one clip and one adapter version, all of one input shape.

    Args:
        version: the adapter that the request was admitted with, and keeps.
        key: of the version.
        flow: whom fairness counts: the adapter, whatever its version; its patient work by itself.
        inputs: the windows `[W, ...]`; shared by identity between adapters that read a clip in the same way.
        rows: W.
        shape: what rows of one forward must have in common.
        frames: work of all rows, in window-frames: the unit of the queue's and the batches' bounds.
        nbytes: memory that all rows take on the device.
        deadline: on the clock of `time.monotonic`; after it nobody wants the answer.
        patient: as `Work.patient`.
    """

    version: AdapterVersion
    key: AdapterKey
    flow: str
    inputs: Values
    rows: int
    shape: Hashable
    frames: int
    nbytes: int
    deadline: float
    patient: bool = False
    future: "Future[Values]" = field(default_factory=Future)
    admitted: float = field(default_factory=time.monotonic)

    def abandoned(self, now: float) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.future.done() or now >= self.deadline

    def fail(self, error: BaseException) -> None:
        """Answers with `error`, unless the job was answered or cancelled before."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class Rows:
    """So many of a job's rows from `start` on, and the slot that its adapter is in."""

    job: Job
    slot: int
    start: int
    count: int

    @property
    def inputs(self) -> Values:
        """Their windows."""
        return self.job.inputs[self.start : self.start + self.count]
