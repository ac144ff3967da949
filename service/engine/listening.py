"""One pass over a recording: blocks of samples as they come -> what each adapter says of each window, in order.

Windows go to the device in pieces that the queue has room for, so that a recording is never refused in its midst, and
as patient work, which gives way to requests that somebody waits for.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from service.audio.moving import Cut, MovingWindows
from service.audio.waveform import SAMPLING_RATE
from service.engine.device import Part, Work
from service.engine.engine import Engine, Outputs, answer
from service.engine.job import FRAME_SECONDS, Values, flow_of
from service.engine.prepare import Reading
from service.errors import Overloaded, ServiceError
from service.registry.store import AdapterVersion

PIECE_FRAMES = 6_000  # window-frames of one adapter that are cut, and asked of the device, at once: 60 s
ROOM_SECONDS = 0.05  # between two looks for room in the queue


@dataclass(frozen=True, slots=True)
class Heard(Outputs):
    """What one adapter said of windows that follow one another.

    Args:
        index: of the adapter, as asked.
        number: of the first of the windows in the recording.
        seconds: of the recording that had come by then.
    """

    index: int
    number: int
    seconds: float


async def listen(
    engine: Engine,
    adapters: Sequence[AdapterVersion],
    blocks: AsyncIterator[Values],
    hop: float,
    *,
    first: int = 0,
    patient: bool = True,
) -> AsyncGenerator[Heard]:
    """Every window of a recording, one every `hop` seconds and the last flush with the end, in order for each adapter.

    Where `blocks` raises a ServiceError after a window was complete, the windows until then come first, as if the
    recording ended there, and then that error, with `at`. Closing the iterator drops what waits for the device.

    Args:
        blocks: float32 `[N]` each, mono at 16 kHz; asked for no faster than the device goes through them.
        hop: a multiple of 10 ms.
        first: number of the first window that is wanted: a pass that broke off goes on where it was.
        patient: whether requests go first; not where somebody listens meanwhile.

    Raises:
        NotReady, AdapterFailed, NoFreeSlot: as `Device.infer`.
        ClipTooShort: less than 25 ms came in all.
    """
    engine.check_ready(adapters)
    hearing = _Hearing(engine, adapters, round(hop / FRAME_SECONDS), first, patient)
    pieces = hearing.pieces(blocks)
    coming = asyncio.ensure_future(anext(pieces, None))  # cut while the device is at the piece before
    try:
        while (piece := await coming) is not None:
            coming = asyncio.ensure_future(anext(pieces, None))
            for heard in await hearing.infer(piece):
                yield heard
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        await pieces.aclose()


class _Hearing:
    """The state of one pass."""

    def __init__(
        self, engine: Engine, adapters: Sequence[AdapterVersion], hop_frames: int, first: int, patient: bool
    ) -> None:
        self._engine = engine
        self._readings = [engine.reading(version) for version in adapters]
        wanted = [version.manifest.recording_spec() for version in adapters]
        specs = list(dict.fromkeys(wanted))
        self._spec_of = [specs.index(spec) for spec in wanted]
        self._moving = MovingWindows(engine.device.features, specs, hop_frames, first)
        self._first, self._patient = first, patient
        self._most = min(PIECE_FRAMES, engine.room.frames // (4 * len(adapters)))
        for version in adapters:
            engine.telemetry.adapters[version.name].inc()

    async def pieces(self, blocks: AsyncIterator[Values]) -> AsyncGenerator[tuple[list[Cut], float]]:
        """Windows, and how many seconds had come."""
        prepare, flow = self._engine.preparer.run, flow_of(self._readings[0].adapter.name, self._patient)
        broken, any_cut = None, self._first > 0
        try:
            async for block in blocks:
                self._engine.telemetry.audio_seconds_total.inc(len(block) / SAMPLING_RATE)
                cuts = await prepare(flow, self._advance, block)
                while cuts:
                    any_cut = True
                    yield cuts, self._moving.seconds
                    cuts = await prepare(flow, self._moving.take, self._most)
        except ServiceError as error:
            if not any_cut:
                raise
            broken = error
        if cuts := await prepare(flow, self._moving.finish):
            yield cuts, self._moving.seconds
        if broken is not None:
            broken.at = self._moving.seconds
            raise broken

    def _advance(self, block: Values) -> list[Cut]:
        self._moving.add(torch.from_numpy(block))
        return self._moving.take(self._most)

    async def infer(self, piece: tuple[list[Cut], float]) -> list[Heard]:
        """What every adapter says of the windows that it reads."""
        cuts, seconds = piece
        by_spec = {cut.spec: (cut, cut.windows.inputs.numpy()) for cut in cuts}
        asked: list[tuple[int, Reading, Cut]] = []
        parts: list[Part] = []
        wanted: dict[str, int] = {}
        for index, (reading, spec) in enumerate(zip(self._readings, self._spec_of, strict=True)):
            if spec in by_spec:
                cut, windows = by_spec[spec]
                asked.append((index, reading, cut))
                parts.append(Part(reading.adapter, windows, cut.windows.frames))
                flow = flow_of(reading.adapter.name, self._patient)
                frames = len(windows) * self._engine.device.costs.of(cut.windows.frames).frames
                wanted[flow] = wanted.get(flow, 0) + frames
        await self._room(wanted)
        with self._holding(wanted):
            values = await self._engine.device.infer(Work(parts, math.inf, self._patient))
        heard = []
        for (index, reading, cut), outputs in zip(asked, values, strict=True):
            said = answer(reading.adapter.manifest, outputs)
            heard.append(Heard(reading.adapter, said, cut.windows.spans, index, cut.number, seconds))
            heard[-1].finite()
        return heard

    async def _room(self, wanted: Mapping[str, int]) -> None:
        """Takes room in the queue, however long there is none. Raises PayloadTooLarge where there never will be."""
        while True:
            self._engine.check_ready()
            try:
                self._engine.room.take(wanted)
                return
            except Overloaded:
                await asyncio.sleep(ROOM_SECONDS)

    @contextmanager
    def _holding(self, taken: Mapping[str, int]) -> Iterator[None]:
        try:
            yield
        finally:
            self._engine.room.give_back(taken)
