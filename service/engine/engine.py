"""What stands before the device: who is let in, the clips that become windows, the outputs that become answers."""

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np

from service.engine.device import Device, Part, Work
from service.engine.job import FRAME_SECONDS, AdapterKey, Values
from service.engine.prepare import Clip, Preparer, Reading
from service.engine.recording import Recordings
from service.engine.room import Room
from service.errors import AdapterFailed, DeadlineExceeded, NotReady
from service.registry.manifest import Manifest
from service.registry.store import AdapterVersion, Registry
from service.scoring.score import activate
from service.settings import Settings
from service.telemetry import Occupancy, Telemetry

_READINGS_KEPT = 4096
_FEW_VALUES = 2**14  # outputs that the event loop turns into answers itself: it takes less than a thread would
_LOOK_SECONDS = 0.01  # between looks for an empty queue, at the end


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one adapter said of one clip.

    Args:
        values: float32, probabilities `[W, C]` after activation and temperature, or raw speaker embeddings
            `[W, embedding_dim]`.
        spans: start and end of each window, seconds.
    """

    adapter: AdapterVersion
    values: Values
    spans: tuple[tuple[float, float], ...]

    def finite(self) -> Values:
        """The values; raises AdapterFailed where the adapter made NaN or infinite ones."""
        if not np.isfinite(self.values).all():
            told = "the adapter's outputs are not finite; its weights do not suit this input"
            raise AdapterFailed(told, adapter=self.adapter.reference)
        return self.values


class Engine:
    """Lets requests in, as far as there is room, and takes them through the device."""

    def __init__(self, device: Device, registry: Registry, settings: Settings, telemetry: Telemetry) -> None:
        self.device = device
        self.room = Room(round(settings.queue_seconds / FRAME_SECONDS), lambda: device.rate)
        self.preparer = Preparer(device, settings, telemetry)
        self.recordings = Recordings(settings, telemetry)
        self._registry = registry
        self.telemetry = telemetry
        self._readings: dict[AdapterKey, Reading] = {}
        self._open = False

    def check_ready(self, adapters: Sequence[AdapterVersion] = ()) -> None:
        """Raises NotReady, with the reason, unless requests are admitted; AdapterFailed as `Device.check`."""
        self.device.check(adapters)
        if not self._open:
            raise NotReady("the engine is not running")

    def start(self, on_dead: Callable[[NotReady], None] = lambda error: None) -> None:
        """Starts the device, then admits requests. `on_dead` is called if the device is lost for good."""
        self.device.start(self._registry, on_dead)
        self._open = True
        self.telemetry.show_occupancy(self._occupancy)

    def _occupancy(self) -> Occupancy:
        return replace(self.device.occupancy(), queue_seconds=self.room.held * FRAME_SECONDS)

    def stop(self, timeout: float) -> bool:
        """Admits nothing more, finishes what was admitted within `timeout` seconds, fails the rest with NotReady.

        Returns:
            Whether the device has returned from its last batch.
        """
        deadline = time.monotonic() + timeout
        self._open = False
        while self.room.held and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        stopped = self.device.stop(max(0.0, deadline - time.monotonic()))
        self.preparer.close(wait=stopped)
        self.recordings.close()
        return stopped

    def admit(self, adapters: Sequence[AdapterVersion]) -> "Place":
        """Room for one clip of the shortest, until the end of the `async with`; more is taken as it turns out.

        Entering it raises at once what would be raised later, so that nothing is read or decoded in vain.

        Raises:
            NotReady: the engine is not started, or stopping, or its device hangs or fails.
            AdapterFailed: an adapter's weights could not be loaded a moment ago, or it cannot run here.
            PayloadTooLarge: the request alone is more than the queue holds.
            Overloaded: the queue, or an adapter's share of it, is full.
        """
        self.check_ready(adapters)
        return Place(self, [self._readings.get(version.key) or self.reading(version) for version in adapters])

    def reading(self, version: AdapterVersion) -> Reading:
        """How an adapter reads clips. Raises AdapterFailed: its windows are more than runs here."""
        key = version.key
        reading = self._readings.get(key)
        if reading is None:
            manifest = version.manifest
            if refusal := self.device.costs.refusal(manifest.window_frames):
                raise AdapterFailed(refusal, adapter=version.reference)
            least = self.device.costs.of(manifest.least_window_frames).frames
            if len(self._readings) >= _READINGS_KEPT:
                self._readings.clear()
            reading = self._readings[key] = Reading(version, manifest.input_spec(), least)
        return reading


class Place:
    """What one request holds of the queue's room, from before its body is read until it is answered."""

    __slots__ = ("_engine", "_held", "_lock", "_readings", "adapters")

    def __init__(self, engine: Engine, readings: Sequence[Reading]) -> None:
        self._engine = engine
        self._readings = readings
        self.adapters = [reading.adapter for reading in readings]
        self._held: Counter[str] | None = None  # None before and after
        self._lock = threading.Lock()  # clips take room from their threads, also when the request has gone

    async def __aenter__(self) -> "Place":
        held = self._by_flow([reading.least for reading in self._readings])
        self._engine.room.take(held)
        self._held = Counter(held)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            held, self._held = self._held, None
        self._engine.room.give_back(held or {})

    def prepare(self, encoded: Sequence[bytes], reserve: Callable[[int], None]) -> Awaitable[list[Clip]]:
        """Every clip decoded once and cut into the windows that the adapters read.

        Args:
            reserve: called with the bytes of memory that each clip's windows take.

        Raises:
            BadAudio, AudioTooLong: with the index of the clip at fault.
            PayloadTooLarge, Overloaded: there is no room for so many clips or windows.
        """
        if len(encoded) > 1:
            self._take([(len(encoded) - 1) * reading.least for reading in self._readings])
        return self._engine.preparer.prepare(encoded, self._readings, self._take_more, reserve)

    async def infer(self, clips: Sequence[Clip], deadline: float = math.inf) -> list[list[Outputs]]:
        """Every adapter's outputs for every clip, `[clip][adapter]`; one failure fails the whole request.

        Cancelling drops what has not reached the device, as the caller does at its deadline.

        Args:
            deadline: on the clock of `time.monotonic`; what waits for its turn then has waited in vain.

        Raises:
            NotReady, AdapterFailed, NoFreeSlot: as `Device.infer`.
        """
        arrays = {id(read): read.inputs.numpy() for clip in clips for read in clip.reads}  # one for those who share
        parts = [
            Part(version, arrays[id(read)], read.frames)
            for clip in clips
            for version, read in zip(self.adapters, clip.reads, strict=True)
        ]
        for version in self.adapters:
            self._engine.telemetry.adapters[version.name].inc(len(clips))
        started = time.monotonic()
        values = await self._engine.device.infer(Work(parts, deadline))
        for version in self.adapters:
            self._engine.telemetry.adapter_seconds[version.name].observe(time.monotonic() - started)
        if sum(each.size for each in values) <= _FEW_VALUES:
            return self._outputs(clips, values)
        return await asyncio.to_thread(self._outputs, clips, values)

    def _outputs(self, clips: Sequence[Clip], values: Sequence[Values]) -> list[list[Outputs]]:
        told = iter(values)
        return [
            [
                Outputs(version, answer(version.manifest, next(told)), read.spans)
                for version, read in zip(self.adapters, clip.reads, strict=True)
            ]
            for clip in clips
        ]

    def _take_more(self, frames: Sequence[int]) -> None:
        """Takes the room that a clip needs for each adapter beyond the least, which it has had all along."""
        more = [max(0, took - reading.least) for took, reading in zip(frames, self._readings, strict=True)]
        if any(more):
            self._take(more)

    def _take(self, frames: Sequence[int]) -> None:
        more = self._by_flow(frames)
        with self._lock:
            if self._held is None:
                raise DeadlineExceeded("nobody waits for the request any more")
            self._engine.room.take(more)
            self._held.update(more)

    def _by_flow(self, frames: Sequence[int]) -> dict[str, int]:
        """Each adapter's window-frames by what fairness counts, its name."""
        found: dict[str, int] = {}
        for reading, count in zip(self._readings, frames, strict=True):
            found[reading.adapter.name] = found.get(reading.adapter.name, 0) + count
        return found


def answer(manifest: Manifest, outputs: Values) -> Values:
    """A head's outputs `[W, ...]` as the service answers them: probabilities, or embeddings as they are."""
    if manifest.activation is None:
        return outputs
    temperature = (manifest.calibration and manifest.calibration.temperature) or 1.0
    return activate(outputs, manifest.activation, temperature)
