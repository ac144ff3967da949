"""One request on its way through the engine: clips x adapters cut into jobs. Knows no queue and no device."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.audio.features import ClipFeatures
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
    ) -> None:
        self._clips = clips
        self._adapters = [(version, version.manifest.input_spec()) for version in adapters]
        self._deadline = deadline
        self._batch_frames = batch_frames
        frames: Counter[str] = Counter()
        for version, spec in self._adapters:
            frames[flow_of(version)] += sum(clip.count(spec) for clip in clips) * spec.window_frames
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
                if id(windows) not in chunks:
                    chunks[id(windows)] = torch.split(windows.inputs, max(1, self._batch_frames // spec.window_frames))
                first = len(self.jobs)
                self.jobs += [self._job(version, chunk, spec.window_frames) for chunk in chunks[id(windows)]]
                parts.append(Part(version, slice(first, len(self.jobs)), windows.spans))
            self.parts.append(parts)

    def _job(self, version: AdapterVersion, chunk: Tensor, window_frames: int) -> Job:
        rows = len(chunk)
        return Job(version, chunk, rows, tuple(chunk.shape[1:]), rows * window_frames, self._deadline)


def least_frames(adapters: Sequence[AdapterVersion], clips: int) -> Mapping[str, int]:
    """The window-frames by flow that a request has at least: its clips, not decoded yet, have one window or more."""
    frames: Counter[str] = Counter()
    for version in adapters:
        frames[flow_of(version)] += clips * version.manifest.input.window_frames
    return frames
