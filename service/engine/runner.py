"""Runs rows on the device: windows to it, the forward and the heads, outputs back; in halves where it has no room."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from service.engine.faults import Fault, fault_of
from service.engine.job import Rows, Values
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.precision import host_memory

_WARM_UP_FRAMES = 128  # 1.28 s

Run = Callable[[Sequence[Rows]], Sequence[Values]]
Outcome = Values | Fault

_log = logging.getLogger(__name__)


class Runner:
    """Owns the backbone's forward; used by the device's one worker."""

    def __init__(self, backbone: Backbone, bank: Bank) -> None:
        self._backbone = backbone
        self._bank = bank

    def run(self, batch: Sequence[Rows]) -> list[Values]:
        """Each part's outputs `[W, C]`, of rows of one input shape: two copies to the device, one back."""
        distinct: dict[tuple[int, int, int], int] = {}  # windows that adapters share go once: the first row of each
        windows: list[Values] = []
        rows: list[int] = []
        slots: list[int] = []
        total = 0
        for part in batch:
            identity = id(part.job.inputs), part.start, part.count
            if identity not in distinct:
                distinct[identity] = total
                windows.append(part.inputs)
                total += part.count
            rows += range(distinct[identity], distinct[identity] + part.count)
            slots += [part.slot] * part.count
        inputs = self._on_host(windows)
        with torch.inference_mode():
            outputs = self._backbone.answer(inputs, self._bank, slots, rows).cpu().numpy()
        answers, start = [], 0
        for part in batch:
            answers.append(outputs[start : start + part.count, : self._bank.outputs(part.slot)])
            start += part.count
        return answers

    def _on_host(self, windows: Sequence[Values]) -> Tensor:
        """The windows behind each other, where the device copies them from without a wait."""
        device = self._backbone.device
        if device.type == "cpu":
            return torch.from_numpy(windows[0] if len(windows) == 1 else np.concatenate(windows))
        inputs = host_memory((sum(map(len, windows)), *windows[0].shape[1:]), torch.float32, device)
        np.concatenate(windows, out=inputs.numpy())
        return inputs

    def warm_up(self, rows: int = 1) -> int:
        """One forward of the bare backbone: does the lazy set-up, and shows whether the device works at all.

        Returns:
            Its window-frames.
        """
        window_frames = max(_WARM_UP_FRAMES, self._backbone.spec.min_window_frames)
        windows = torch.zeros((rows, *self._backbone.input_shape(window_frames)))
        with torch.inference_mode():
            self._backbone.forward(windows, self._bank, [0] * rows).cpu()  # waits for the device
        return rows * window_frames

    def free_cached_memory(self) -> None:
        """Gives back what the allocator keeps, so that a smaller batch is not refused for fragments."""
        if self._backbone.device.type == "cuda":
            torch.cuda.empty_cache()


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
