"""One request on its way through the engine: clips x adapters cut into jobs. Knows no queue and no device."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.audio.features import ClipFeatures
from service.engine.cost import Cost, Costs
from service.engine.job import Job, flow_of
from service.registry.store import AdapterVersion


@dataclass(frozen=True, slots=True)
class Part:
    """One clip read by one adapter: a slice of the request's jobs, whose windows lie at `spans`, seconds."""

    version: AdapterVersion
    jobs: slice
    spans: tuple[tuple[float, float], ...]


class Request:
    """Clips x adapters of one request, to be cut into jobs.

    Attributes:
        frames: window-frames by flow.
        jobs, parts: filled by `cut_windows`.
    """

    def __init__(
        self,
        clips: Sequence[ClipFeatures],
        adapters: Sequence[AdapterVersion],
        deadline: float,
        batch_frames: int,
        batch_bytes: float,
        costs: Costs,
    ) -> None:
        self._clips = clips
        self._adapters = [(version, version.manifest.input_spec()) for version in adapters]
        self._deadline = deadline
        self._batch_frames = batch_frames
        self._batch_bytes = batch_bytes
        self._costs = costs
        frames: Counter[str] = Counter()
        for version, spec in self._adapters:
            each = [clip.count(spec) * costs.of(clip.window_frames(spec)).frames for clip in clips]
            frames[flow_of(version)] += sum(each)
        self.frames: Mapping[str, int] = frames
        self.jobs: list[Job] = []
        self.parts: list[list[Part]] = []  # [clip][adapter]

    def cut_windows(self) -> None:
        """Computes the features, each once for a clip however many adapters read it, and cuts them into jobs."""
        for clip in self._clips:
            chunks: dict[int, Sequence[Tensor]] = {}  # by the identity of the windows that adapters share
            parts = []
            for version, spec in self._adapters:
                windows = clip.windows(spec)
                cost = self._costs.of(windows.frames)
                if id(windows) not in chunks:
                    rows = min(self._batch_frames / cost.frames, self._batch_bytes / cost.nbytes)
                    chunks[id(windows)] = torch.split(windows.inputs, max(1, int(rows)))
                first = len(self.jobs)
                self.jobs += [self._job(version, chunk, cost) for chunk in chunks[id(windows)]]
                parts.append(Part(version, slice(first, len(self.jobs)), windows.spans))
            self.parts.append(parts)

    def _job(self, version: AdapterVersion, chunk: Tensor, cost: Cost) -> Job:
        rows, shape = len(chunk), tuple(chunk.shape[1:])
        return Job(version, chunk, rows, shape, rows * cost.frames, self._deadline, rows * cost.nbytes)


def least_frames(adapters: Sequence[AdapterVersion], clips: int, costs: Costs) -> Mapping[str, int]:
    """The window-frames by flow that a request has at least: its clips, not decoded yet, have one window or more."""
    frames: Counter[str] = Counter()
    for version in adapters:
        frames[flow_of(version)] += clips * costs.of(version.manifest.least_window_frames).frames
    return frames
