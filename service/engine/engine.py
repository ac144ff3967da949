"""What stands before the device: who is let in, the clips that become windows, the outputs that become answers."""

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from service.engine.device import Part, Work
from service.engine.job import FRAME_SECONDS, AdapterKey, Values, key_of
from service.engine.local import LocalDevice
from service.engine.prepare import Clip, Preparer, Reading
from service.engine.room import Room
from service.errors import AdapterFailed, DeadlineExceeded, NotReady
from service.registry.manifest import Manifest
from service.registry.store import AdapterVersion, Registry
from service.scoring.calibration import with_temperature
from service.scoring.score import activate
from service.settings import Settings
from service.telemetry import Telemetry

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


class Engine:
    """Lets requests in, as far as there is room, and takes them through the device."""

    def __init__(self, device: LocalDevice, registry: Registry, settings: Settings, telemetry: Telemetry) -> None:
        self.device = device
        self.room = Room(round(settings.queue_seconds / FRAME_SECONDS), lambda: device.rate)
        self.preparer = Preparer(device, settings, telemetry)
        self._registry = registry
        self._telemetry = telemetry
        self._readings: dict[AdapterKey, Reading] = {}
        self._open = False

    def check_ready(self) -> None:
        """Raises NotReady, with the reason, unless requests are admitted."""
        self.device.check()
        if not self._open:
            raise NotReady("the engine is not running")

    def start(self, on_dead: Callable[[NotReady], None] = lambda error: None) -> None:
        """Starts the device, then admits requests. `on_dead` is called if the device is lost for good."""
        self.device.start(self._registry, on_dead)
        self._open = True

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
        self.check_ready()
        for version in adapters:
            self.device.check_adapter(version)
        return Place(self, [self._reading(version) for version in adapters])

    def _reading(self, version: AdapterVersion) -> Reading:
        key = key_of(version)
        reading = self._readings.get(key)
        if reading is None:
            manifest = version.manifest
            if refusal := self.device.refusal(manifest.window_frames):
                raise AdapterFailed(refusal, adapter=version.reference)
            least = self.device.cost(manifest.least_window_frames).frames
            if len(self._readings) >= _READINGS_KEPT:
                self._readings.clear()
            reading = self._readings[key] = Reading(version, manifest.input_spec(), least)
        return reading

    def count(self, readings: Sequence[Reading], clips: int) -> None:
        """Counts clips asked of adapters."""
        for reading in readings:
            self._telemetry.count_adapter(reading.adapter.name, clips)


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

    async def prepare(self, encoded: Sequence[bytes], reserve: Callable[[int], None]) -> list[Clip]:
        """Every clip decoded once and cut into the windows that the adapters read.

        Args:
            reserve: called with the bytes of memory that each clip's windows take.

        Raises:
            BadAudio, AudioTooLong: with the index of the clip at fault.
            PayloadTooLarge, Overloaded: there is no room for so many clips or windows.
        """
        if len(encoded) > 1:
            self._take([(len(encoded) - 1) * reading.least for reading in self._readings])
        return await self._engine.preparer.prepare(encoded, self._readings, self._take_more, reserve)

    async def infer(self, clips: Sequence[Clip], deadline: float = math.inf) -> list[list[Outputs]]:
        """Every adapter's outputs for every clip, `[clip][adapter]`; one failure fails the whole request.

        Cancelling drops what has not reached the device.

        Args:
            deadline: on the clock of `time.monotonic`.

        Raises:
            DeadlineExceeded: the answer was not there at the deadline.
            NotReady, AdapterFailed, NoFreeSlot: as `Device.infer`.
        """
        parts = [
            Part(reading.adapter, read.windows, read.frames)
            for clip in clips
            for reading, read in zip(self._readings, clip.reads, strict=True)
        ]
        self._engine.count(self._readings, len(clips))
        try:
            async with asyncio.timeout(None if deadline == math.inf else deadline - time.monotonic()):
                values = await self._engine.device.infer(Work(parts, deadline))
        except TimeoutError:
            raise DeadlineExceeded("the answer was not ready before the request's deadline; try again later") from None
        if sum(each.size for each in values) <= _FEW_VALUES:
            return self._outputs(clips, values)
        return await asyncio.to_thread(self._outputs, clips, values)

    def _outputs(self, clips: Sequence[Clip], values: Sequence[Values]) -> list[list[Outputs]]:
        told = iter(values)
        return [
            [
                Outputs(reading.adapter, answer(reading.adapter.manifest, next(told)), read.spans)
                for reading, read in zip(self._readings, clip.reads, strict=True)
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
    temperature = manifest.calibration.temperature if manifest.calibration else None
    logits = outputs if temperature is None else with_temperature(outputs, temperature)
    return activate(logits, manifest.activation).astype(np.float32)
