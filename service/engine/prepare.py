"""One hop from an encoded clip to the windows that adapters read: decode, resample, features, windows.

It runs in a pool beside the event loop, a clip at a time; flows take turns at it, so that who sends many clips does
not hold up the others.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from service.audio.activity import SpeechActivity
from service.audio.decode import DecodeLimits, decode
from service.audio.features import ClipFeatures, InputSpec
from service.audio.quality import quality_warnings
from service.engine.cores import use_cores
from service.engine.job import Values
from service.engine.local import LocalDevice
from service.engine.turns import Turns
from service.errors import AudioTooLong, ServiceError
from service.model.spec import TaskType
from service.registry.store import AdapterVersion
from service.settings import Settings
from service.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Reading:
    """How one adapter reads clips.

    Args:
        least: work of a window of the shortest clip, window-frames.
    """

    adapter: AdapterVersion
    spec: InputSpec
    least: int


@dataclass(frozen=True, slots=True)
class Read:
    """One clip as one adapter reads it.

    Args:
        windows: float32 `[W, ...]`; the same object for adapters that read in the same way.
        frames: length of each, in hops of 10 ms.
        spans: start and end of each window in the clip, seconds.
    """

    windows: Values
    frames: int
    spans: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Clip:
    """What is left of a clip once it has been prepared.

    Args:
        seconds: of audio.
        source_rate, channels: of the encoded clip.
        speech_seconds: how long somebody speaks in what of it is heard, where that was asked.
        warnings: what is wrong with the speech, where there is some.
        reads: by adapter, as asked.
        nbytes: memory of the windows.
    """

    seconds: float
    source_rate: int
    channels: int
    speech_seconds: float | None
    warnings: tuple[str, ...]
    reads: tuple[Read, ...]
    nbytes: int


class Preparer:
    """The pool in which clips are prepared."""

    def __init__(self, device: LocalDevice, settings: Settings, telemetry: Telemetry) -> None:
        self._device = device
        self._limits = DecodeLimits(max_seconds=settings.max_audio_seconds)
        self._most_seconds = settings.max_request_seconds
        self._telemetry = telemetry
        # The device's worker alone computes on all cores; one core each is best for the many small operations here.
        self._pool = ThreadPoolExecutor(
            settings.decode_threads, thread_name_prefix="prepare", initializer=use_cores, initargs=(1,)
        )
        self._activity = SpeechActivity()
        self._turns = Turns(settings.decode_threads)

    async def prepare(
        self,
        encoded: Sequence[bytes],
        readings: Sequence[Reading],
        take_room: Callable[[Sequence[int]], None],
        reserve: Callable[[int], None],
    ) -> list[Clip]:
        """The windows of every clip.

        Args:
            take_room: called, from the pool, with the work of a clip's windows for each adapter before they are made.
            reserve: called with the bytes that a clip's windows take.

        Raises:
            BadAudio, AudioTooLong: with the index of the clip at fault.
        """
        seconds = 0.0

        async def one(index: int, content: bytes) -> Clip:
            nonlocal seconds
            async with self._turns.turn(readings[0].adapter.name):
                try:
                    clip = await loop.run_in_executor(self._pool, self._prepare, content, readings, take_room)
                    reserve(clip.nbytes)
                    seconds += clip.seconds
                    if seconds > self._most_seconds:
                        most = f"{self._most_seconds:g} s together"
                        raise AudioTooLong(f"the request's clips are longer than {most}; send fewer at once")
                except ServiceError as error:
                    error.clip = index
                    raise
                return clip

        loop = asyncio.get_running_loop()
        if len(encoded) == 1:
            return [await one(0, encoded[0])]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(index, content)) for index, content in enumerate(encoded)]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    def close(self, wait: bool) -> None:
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _prepare(self, content: bytes, readings: Sequence[Reading], take_room: Callable[[Sequence[int]], None]) -> Clip:
        with self._telemetry.decode_seconds.time():
            waveform = decode(content, self._limits)
        self._telemetry.audio_seconds_total.inc(waveform.seconds)
        features, cost = ClipFeatures(waveform, self._device.features), self._device.cost
        specs = [reading.spec for reading in readings]
        take_room([features.count(spec) * cost(features.window_frames(spec)).frames for spec in specs])
        reads: dict[InputSpec, Read] = {}
        for spec in specs:
            if spec not in reads:
                windows = features.windows(spec)
                reads[spec] = Read(windows.inputs.numpy(), windows.frames, windows.spans)
        speech = None
        if readings[0].adapter.manifest.task_type is not TaskType.CLASSIFICATION:
            speech = self._activity.speech_seconds(waveform.samples, reads[specs[0]].spans)
        return Clip(
            waveform.seconds,
            waveform.source_rate,
            waveform.channels,
            speech,
            quality_warnings(waveform.samples) if speech else (),
            tuple(reads[spec] for spec in specs),
            max(waveform.samples.nbytes, sum(read.windows.nbytes for read in reads.values())),
        )
