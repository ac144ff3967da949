"""One hop from an encoded clip to the windows that adapters read: decode, resample, features, windows.

It runs in a pool beside the event loop, a clip at a time; flows take turns at it, so that who sends many clips does
not hold up the others.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple, Unpack

import torch

from service.audio.activity import Speech, SpeechActivity, quality_warnings
from service.audio.decode import DecodeLimits, decode
from service.audio.features import InputSpec, Windows
from service.engine.cores import use_cores
from service.engine.device import Device
from service.errors import AudioTooLong, ServiceError
from service.model.spec import TaskType
from service.registry.store import AdapterVersion
from service.settings import Settings
from service.telemetry import Telemetry

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


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
class Clip:
    """What is left of a clip once it has been prepared.

    Args:
        seconds: of audio.
        source_rate, channels: of the encoded clip.
        speech: how long somebody speaks in what of it is heard by the first adapter, and in which of its windows,
            where that was asked.
        warnings: what is wrong with the speech, where there is some.
        reads: by adapter, as asked; the same object for adapters that read in the same way.
        nbytes: memory of the windows.
    """

    seconds: float
    source_rate: int
    channels: int
    speech: Speech | None
    warnings: tuple[str, ...]
    reads: tuple[Windows, ...]
    nbytes: int

    @property
    def speech_seconds(self) -> float | None:
        return None if self.speech is None else self.speech.seconds


class Turns:
    """Lets `width` at a time through, one of each waiting flow in turn: a thread pool alone serves first come, first
    served. Used from one event loop.
    """

    def __init__(self, width: int) -> None:
        self._free = width
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def take(self, flow: str) -> None:
        """Waits for the flow's turn, which is to be passed on; who is cancelled while waiting is passed over."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(flow, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self.pass_on()
            raise

    def pass_on(self) -> None:
        """Ends a turn that was taken."""
        while self._waiting:
            flow, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[flow] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Preparer:
    """The pool in which clips are prepared."""

    def __init__(self, device: Device, settings: Settings, telemetry: Telemetry) -> None:
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
            try:
                clip = await self.run(readings[0].adapter.name, self._prepare, content, readings, take_room)
                reserve(clip.nbytes)
                seconds += clip.seconds
                if seconds > self._most_seconds:
                    most = f"{self._most_seconds:g} s together"
                    raise AudioTooLong(f"the request's clips are longer than {most}; send fewer at once")
            except ServiceError as error:
                error.clip = index
                raise
            return clip

        if len(encoded) == 1:
            return [await one(0, encoded[0])]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(index, content)) for index, content in enumerate(encoded)]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def run(self, flow: str, work: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """The result of `work`, in a thread of the pool, once it is the flow's turn."""
        await self._turns.take(flow)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)
        finally:
            self._turns.pass_on()

    def close(self, wait: bool) -> None:
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _prepare(self, content: bytes, readings: Sequence[Reading], take_room: Callable[[Sequence[int]], None]) -> Clip:
        with self._telemetry.decode_seconds.time():
            waveform = decode(content, self._limits)
        seconds = waveform.seconds
        self._telemetry.audio_seconds_total.inc(seconds)
        samples, features = torch.from_numpy(waveform.samples), self._device.features
        specs = [reading.spec for reading in readings]
        layouts = {spec: features.layout(len(samples), spec) for spec in dict.fromkeys(specs)}
        costs = {spec: layout.count * self._device.costs.of(layout.frames).frames for spec, layout in layouts.items()}
        take_room([costs[spec] for spec in specs])
        whole = features.whole(samples)
        reads = {spec: features.windows(samples, spec, whole, layout) for spec, layout in layouts.items()}
        speech = None
        if readings[0].adapter.manifest.task_type is not TaskType.CLASSIFICATION:
            speech = self._activity.speech(waveform.samples, reads[specs[0]].spans)
        return Clip(
            seconds,
            waveform.source_rate,
            waveform.channels,
            speech,
            quality_warnings(waveform.samples) if speech and speech.seconds else (),
            tuple(reads[spec] for spec in specs),
            max(samples.nbytes, sum(read.inputs.nbytes for read in reads.values())),
        )
