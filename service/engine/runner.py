"""Runs one batch on the device: forward, heads, probabilities. Knows no queue and no requests."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from service.engine.job import Job
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.registry.manifest import Manifest
from service.scoring.calibration import with_temperature
from service.scoring.score import activate

Values = NDArray[np.float32]


_WARM_UP_FRAMES = 128  # 1.28 s


class Runner:
    """Owns the backbone's forward; used by the engine's one worker."""

    def __init__(self, backbone: Backbone, bank: Bank) -> None:
        self._backbone = backbone
        self._bank = bank

    def run(self, jobs: Sequence[Job], slots: Sequence[int]) -> list[Values]:
        """Answers jobs of one input shape, job i's adapter being in `slots[i]`.

        Returns:
            For each job its windows' probabilities `[W, C]` or speaker embeddings `[W, embedding_dim]`.
        """
        windows, first_row = _distinct_windows(jobs)
        rows = [first_row[id(job.inputs)] + w for job in jobs for w in range(job.rows)]
        slot_of_row = [slot for job, slot in zip(jobs, slots, strict=True) for _ in range(job.rows)]
        with torch.inference_mode():
            outputs = self._backbone.answer(windows, self._bank, slot_of_row, rows).cpu().numpy()
        starts = np.cumsum([0, *(job.rows for job in jobs)])
        return [
            answer(job.version.manifest, outputs[start : start + job.rows, : self._bank.outputs(slot)])
            for job, slot, start in zip(jobs, slots, starts, strict=False)
        ]

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


def answer(manifest: Manifest, outputs: Values) -> Values:
    """A head's outputs `[W, ...]` as the service answers them: probabilities, or embeddings as they are."""
    if manifest.activation is None:
        return outputs
    temperature = manifest.calibration.temperature if manifest.calibration else None
    logits = outputs if temperature is None else with_temperature(outputs, temperature)
    return activate(logits, manifest.activation).astype(np.float32)


def _distinct_windows(jobs: Sequence[Job]) -> tuple[torch.Tensor, dict[int, int]]:
    """The windows of all jobs, those that adapters share once, and the first row of each."""
    distinct = {id(job.inputs): job.inputs for job in jobs}
    first_row, total = {}, 0
    for identity, inputs in distinct.items():
        first_row[identity] = total
        total += len(inputs)
    windows = list(distinct.values())
    return (windows[0] if len(windows) == 1 else torch.cat(windows)), first_row
