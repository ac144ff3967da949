"""Runs rows on the device: windows to it, the forward and the heads, outputs back. Knows no queue and no requests."""

from collections.abc import Sequence

import numpy as np
import torch

from service.engine.job import Rows, Values
from service.model.backbone import Backbone
from service.model.bank import Bank

_WARM_UP_FRAMES = 128  # 1.28 s


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
        inputs = torch.from_numpy(windows[0] if len(windows) == 1 else np.concatenate(windows))
        with torch.inference_mode():
            outputs = self._backbone.answer(inputs, self._bank, slots, rows).cpu().numpy()
        answers, start = [], 0
        for part in batch:
            answers.append(outputs[start : start + part.count, : self._bank.outputs(part.slot)])
            start += part.count
        return answers

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
