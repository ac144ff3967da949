"""Runs one batch on the device: forward, heads, probabilities. Knows no queue and no requests."""

from collections.abc import Sequence

import numpy as np
import torch

from service.engine.job import Rows, Values
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.registry.manifest import Manifest
from service.scoring.calibration import with_temperature
from service.scoring.score import activate

_WARM_UP_FRAMES = 128  # 1.28 s


class Runner:
    """Owns the backbone's forward; used by the engine's one worker."""

    def __init__(self, backbone: Backbone, bank: Bank) -> None:
        self._backbone = backbone
        self._bank = bank

    def run(self, batch: Sequence[Rows]) -> list[Values]:
        """Answers rows of one input shape.

        Returns:
            For each part its windows' probabilities `[W, C]` or speaker embeddings `[W, embedding_dim]`.
        """
        windows, first_row = _distinct_windows(batch)
        rows = [first_row[_identity(part)] + w for part in batch for w in range(part.count)]
        slot_of_row = [part.slot for part in batch for _ in range(part.count)]
        with torch.inference_mode():
            outputs = self._backbone.answer(windows, self._bank, slot_of_row, rows).cpu().numpy()
        starts = np.cumsum([0, *(part.count for part in batch)])
        return [
            answer(part.job.version.manifest, outputs[start : start + part.count, : self._bank.outputs(part.slot)])
            for part, start in zip(batch, starts, strict=False)
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


def _identity(part: Rows) -> tuple[int, int, int]:
    return id(part.job.inputs), part.start, part.stop


def _distinct_windows(batch: Sequence[Rows]) -> tuple[torch.Tensor, dict[tuple[int, int, int], int]]:
    """The windows of all rows, those that adapters share once, and the first row of each part."""
    distinct = {_identity(part): part.inputs for part in batch}
    first_row, total = {}, 0
    for identity, inputs in distinct.items():
        first_row[identity] = total
        total += len(inputs)
    windows = list(distinct.values())
    return (windows[0] if len(windows) == 1 else torch.cat(windows)), first_row
