"""A recording between who receives it and who hears it: bytes in, decoded beside the event loop, blocks of samples out.

The thread that decodes one waits for its bytes, and for those who hear it: little of it is ever in memory. It is none
of those that prepare clips, which would have to wait with it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import numpy as np

from service.audio.containers import Container
from service.audio.decode import DecodeLimits, decode_arriving
from service.audio.mixdown import Mixdown
from service.engine.cores import use_cores
from service.engine.job import Values
from service.errors import DeadlineExceeded, Overloaded
from service.registry.quarantine import require_room
from service.settings import Settings
from service.telemetry import Telemetry

MOST: Final = 256  # recordings that are decoded at once
BLOCKS_AHEAD: Final = 16  # that are decoded before anybody wants them
IDLE_SHARE: Final = 0.9  # of a request's time without another byte of it: what was heard can then still be told
GATHERED_SAMPLES: Final = 160_000  # given at once where they are there: 10 s

T = TypeVar("T")


class Recordings:
    """All recordings that are being decoded."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        self.limits = DecodeLimits(max_seconds=settings.max_long_seconds, max_decoded_bytes=2**63)
        self.spool = settings.data_dir
        self.request_seconds = settings.request_timeout
        self.gauge = telemetry.recordings_in_progress
        self.count = 0
        self.pool = ThreadPoolExecutor(MOST, thread_name_prefix="recording", initializer=use_cores, initargs=(1,))

    def open(
        self, chunks: AsyncIterator[bytes], *, seconds: float | None = None, only: Container | None = None
    ) -> "Recording":
        """A recording that comes in `chunks`, to be entered with `async with`.

        Args:
            seconds: of its request, if that has fewer than others.
            only: the container that is accepted; any without it.
        """
        seconds = self.request_seconds if seconds is None else seconds
        return Recording(self, chunks, IDLE_SHARE * seconds, only)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


class Recording:
    """One recording.

    Attributes:
        source_rate, channels: of the encoded recording; 0 before its first samples.
        seconds: decoded so far.
    """

    def __init__(
        self, recordings: Recordings, chunks: AsyncIterator[bytes], idle_seconds: float, only: Container | None
    ) -> None:
        self._idle_seconds = idle_seconds
        self._all = recordings
        self._only = only
        self._chunks = chunks
        self._mixdown = Mixdown(recordings.limits, sink=self._give)
        self._blocks: asyncio.Queue[Values | Exception | None] = asyncio.Queue(BLOCKS_AHEAD)
        self._waiting: asyncio.Task[Any] | None = None  # what the thread waits for
        self._closed = False

    @property
    def source_rate(self) -> int:
        return self._mixdown.first[0] if self._mixdown.first else 0

    @property
    def channels(self) -> int:
        return self._mixdown.first[1] if self._mixdown.first else 0

    @property
    def seconds(self) -> float:
        return self._mixdown.seconds

    async def __aenter__(self) -> Self:
        """Begins to decode. Raises Overloaded: too many recordings are being decoded."""
        if self._all.count >= MOST:
            raise Overloaded(f"{MOST} recordings are under way already; try again later", retry_after=10.0)
        self._all.count += 1
        self._all.gauge.inc()
        self._loop = asyncio.get_running_loop()
        self._decoding = self._loop.run_in_executor(self._all.pool, self._decode)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        if self._waiting is not None:
            self._waiting.cancel()
        try:
            await asyncio.wait([self._decoding])
        finally:
            self._all.count -= 1
            self._all.gauge.dec()

    async def blocks(self) -> AsyncIterator[Values]:
        """Its samples, float32 `[N]` each, mono at 16 kHz: as many at once as are there, up to 10 s.

        Raises:
            BadAudio, AudioTooLong, ClipTooShort, InvalidRequest, StorageFull: as `decode_arriving`.
            DeadlineExceeded: no more of it comes.
        """
        ended, error = False, None
        while not ended:
            together: list[Values] = []
            count = 0
            while not together or not (count >= GATHERED_SAMPLES or self._blocks.empty()):
                block = await self._blocks.get()
                if block is None or isinstance(block, Exception):
                    ended, error = True, block
                    break
                together.append(block)
                count += len(block)
            if together:
                yield np.concatenate(together)
        if error is not None:
            raise error

    def _decode(self) -> None:
        """In the thread."""
        ending: Exception | None = None
        try:
            room = partial(require_room, self._all.spool)
            decode_arriving(self._pull(), self._mixdown, self._all.spool, require_room=room, only=self._only)
        except Exception as error:
            ending = error
        if not self._closed:
            with suppress(CancelledError):
                self._wait_for(lambda: self._blocks.put(ending))

    def _pull(self) -> Iterator[bytes]:
        while chunk := self._wait_for(self._next):
            yield chunk

    def _give(self, block: Values) -> None:
        if len(block):
            self._wait_for(lambda: self._blocks.put(block))

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(self._idle_seconds):
                return await anext(self._chunks, b"")
        except TimeoutError:
            told = f"no more of the recording came within {self._idle_seconds:g} s"
            raise DeadlineExceeded(told) from None

    def _wait_for(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """From the thread: what the event loop has once it is there. Raises CancelledError: nobody hears any more."""

        async def waiting() -> T:
            self._waiting = asyncio.current_task()
            if self._closed:
                raise asyncio.CancelledError
            return await begin()

        return asyncio.run_coroutine_threadsafe(waiting(), self._loop).result()
