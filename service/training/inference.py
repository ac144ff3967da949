"""Many clips through one adapter, with the windows, forward and head of the server. Knows no targets and no metrics."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.audio.features import InputSpec
from service.model.adapter import AdapterWeights
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.training.recordings import Samples

ROWS = 48  # windows in one forward


class Inference:
    """An adapter on its backbone, ready to answer."""

    def __init__(self, backbone: Backbone, weights: AdapterWeights, spec: InputSpec) -> None:
        self._backbone = backbone
        self._spec = spec
        with torch.no_grad():
            self._bank = Bank.of(backbone, [weights])

    def __call__(self, clips: Iterable[Samples]) -> Iterator[NDArray[np.float32]]:
        """Samples `[N]` of each clip -> the head's raw outputs for its windows `[W, outputs]`, in order."""
        waiting: list[Tensor] = []
        for samples in clips:
            waiting.append(self._backbone.features.windows(torch.from_numpy(samples), self._spec).inputs)
            if sum(map(len, waiting)) >= ROWS:
                yield from self._answers(waiting)
                waiting = []
        if waiting:
            yield from self._answers(waiting)

    @torch.no_grad()
    def _answers(self, clips: list[Tensor]) -> list[NDArray[np.float32]]:
        rows = torch.cat(clips)
        outputs = [self._backbone.answer(block, self._bank, [1] * len(block)).cpu() for block in _blocks(rows)]
        ends = np.cumsum([len(clip) for clip in clips])[:-1]
        return np.split(torch.cat(outputs).numpy(), ends)


def _blocks(rows: Tensor) -> list[Tensor]:
    return [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
