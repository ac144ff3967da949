"""What events, jobs and streams share: how they are asked for, and how the windows of each adapter become events."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import Depends, Query

from service.api.call import Call
from service.api.inference.asking import resolve
from service.engine.job import FRAME_SECONDS, Values
from service.model.spec import TaskType
from service.registry.store import AdapterVersion
from service.timeline.parameters import HOP_SECONDS, Parameters
from service.timeline.tables import Row
from service.timeline.timeline import Event, Timeline

Seconds = Annotated[float | None, Query(ge=0, le=3600, description="Seconds; the adapter's own without it.")]
Level = Annotated[float | None, Query(ge=0, le=1, description="A score; the adapter's own without it.")]
Hop = Annotated[float, Query(gt=0, le=3600, description="Seconds from one window's start to the next, in 10 ms.")]


@dataclass(frozen=True, slots=True)
class EventRules:
    """How a query asks for events to be made; None is the adapter's own."""

    hop: Hop = HOP_SECONDS
    threshold: Level = None
    hysteresis: Level = None
    smoothing: Seconds = None
    min_seconds: Seconds = None
    merge_gap: Seconds = None


Rules = Annotated[EventRules, Depends()]


class Lane:
    """One adapter's part of one recording.

    Attributes:
        windows: that have been heard.

    Raises:
        InvalidRequest: parameters that no event could be made with.
    """

    def __init__(self, version: AdapterVersion, asked: EventRules) -> None:
        manifest = version.manifest
        self.version = version
        self.parameters = Parameters.of(manifest.events_asked, **asdict(asked))
        self.windows = 0
        seconds = manifest.recording_frames * FRAME_SECONDS
        self._timeline = Timeline(manifest.labels or (), seconds, self.parameters)

    def fresh(self, number: int, values: Values) -> Values:
        """Scores `[W, C]` of the windows from this number on without those that have been heard already."""
        return values[max(0, self.windows - number) :]

    def add(self, scores: Values) -> list[Row]:
        """Takes the scores `[W, C]` of the next windows; the events that are over."""
        self.windows += len(scores)
        return self._rows(self._timeline.add(scores))

    def finish(self, seconds: float) -> list[Row]:
        """The events that are left, of a recording that is so long."""
        return self._rows(self._timeline.finish(seconds))

    def _rows(self, events: Sequence[Event]) -> list[Row]:
        return [Row("", self.version.name, self.version.version, event) for event in events]


def lanes_of(call: Call, references: Sequence[str], asked: EventRules) -> list[Lane]:
    """A lane for each version that is asked for, once however often it is named. Raises as `resolve` and `Lane`."""
    versions = resolve(call, references, TaskType.CLASSIFICATION)
    lanes = [Lane(version, asked) for version in {one.reference: one for one in versions}.values()]
    call.adapters = [lane.version.reference for lane in lanes]
    return lanes


def parameters_of(lanes: Sequence[Lane]) -> dict[str, Mapping[str, Any]]:
    """What each adapter's events are made with, as it is told."""
    return {lane.version.reference: lane.parameters.told() for lane in lanes}
