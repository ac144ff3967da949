"""Live audio, `WS /v1/stream`: windows and events as they complete.

A stream is the request of its first message, once that has come: the same key, limits and adapters as of any other.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Any, Final, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from service.api.auth import INFER, asks, refuse_foreign_pages
from service.api.call import Call
from service.api.inference.asking import ERRORS, References
from service.api.inference.classify import TopK
from service.api.inference.lanes import Lane, Rules, lanes_of, parameters_of
from service.api.long_json import parse_json
from service.api.problems import problem
from service.api.socket import Socket
from service.audio.containers import Container
from service.audio.mixdown import DEFAULT_LIMITS, DecodeLimits, Mixdown, mean_of_channels
from service.audio.waveform import SAMPLING_RATE
from service.engine.job import Values
from service.engine.listening import Heard, listen
from service.errors import DeadlineExceeded, InvalidRequest, Overloaded, PayloadTooLarge
from service.scoring.score import rank
from service.timeline.tables import Row

router: Final = APIRouter(tags=["inference"])

PATH: Final = "/v1/stream"
SWITCHED: Final = 101
IDLE_SECONDS: Final = 300.0  # without a word of the client
BEHIND_SECONDS: Final = 20.0  # without room for more audio
BLOCK_SECONDS: Final = 1.0  # that are taken at once, at most
LEAST_SECONDS: Final = 0.04  # and at least: every block is a turn of a thread
_START: Final = 'the first message is JSON: {"type": "start", "format": "pcm16", "sampling_rate": 16000, "key": "..."}'


class Start(BaseModel):
    """The first message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["start"]
    format: Literal["pcm16", "webm"]
    sampling_rate: int = Field(
        16_000,
        strict=True,
        ge=DEFAULT_LIMITS.min_rate,
        le=DEFAULT_LIMITS.max_rate,
        description="Of pcm16, Hz; webm says itself.",
    )
    key: str | None = Field(None, description="Where the service asks for one and no header brings it.")


class Control(BaseModel):
    """Any later message of text."""

    type: Literal["end"]


async def begin(call: Call) -> Response | None:
    """Opens the socket and reads its first message; the problem where this path has none.

    Raises:
        Forbidden: a page of another site, where there are no keys.
        NotReady: the service is not ready, or on its way out.
        InvalidRequest: another first message. DeadlineExceeded: none came.
    """
    context, socket = call.context, call.socket
    if socket is None or call.scope["path"] != PATH:
        return problem("not_found", f"there is no WebSocket here, but at {PATH}")
    if not context.keys.closed:
        refuse_foreign_pages(context.settings, call.headers.get("host"), call.headers.get("origin"))
    context.check_ready()
    await socket.accept()
    try:
        async with asyncio.timeout(context.settings.head_timeout):
            message = await socket.receive()
    except TimeoutError as error:
        raise DeadlineExceeded(f"no message came within {context.settings.head_timeout:g} s; {_START}") from error
    if isinstance(message, bytes):
        raise InvalidRequest(f"audio came before the start; {_START}")
    socket.first = message.encode()
    if (key := parse_json(socket.first, Start).key) is not None:
        if "authorization" in call.headers:
            raise InvalidRequest("the key came by the header and by the first message; send it once")
        call.scope["headers"].append((b"authorization", f"Bearer {key}".encode()))
    return None


@router.get(PATH, response_model=None, **asks(INFER, *ERRORS, "bad_http"))
async def stream(call: Call, adapter: References, rules: Rules, top_k: TopK = 5) -> Response:
    """Live audio: a WebSocket, whose first message is `{"type": "start", "format": "pcm16", "sampling_rate": 16000}`.

    Audio follows as binary messages, `{"type": "end"}` ends it. What comes back is JSON of the types `started`,
    `window`, `event`, `done` and `error`.
    """
    if call.socket is None:
        return problem(
            "bad_http", "a stream is a WebSocket: connect to it with ws:// or wss://", {"Upgrade": "websocket"}
        )
    lanes = lanes_of(call, adapter, rules)
    with call.context.streaming():
        call.lifetime.renew(math.inf)
        await _Stream(call, call.socket, lanes, top_k).run(rules.hop)
    return Response(status_code=SWITCHED)


def _event(row: Row) -> Mapping[str, Any]:
    return {"type": "event", **row.told()}


class _Stream:
    """One stream, once it is let in."""

    def __init__(self, call: Call, socket: Socket, lanes: Sequence[Lane], top_k: int) -> None:
        self._call = call
        self._socket = socket
        self._lanes = lanes
        self._top_k = top_k
        self._seconds = 0.0  # that have come
        self._ends = [0.0 for _ in lanes]  # of each one's last window

    async def run(self, hop: float) -> None:
        """Until its end. Raises what ends it before."""
        engine, start = self._call.runtime.engine, parse_json(self._socket.first, Start)
        versions = [lane.version for lane in self._lanes]
        await self._socket.send({"type": "started", "parameters": parameters_of(self._lanes)})
        self._socket.left = lambda: self._last_events(self._ends)
        async with AsyncExitStack() as opened:
            if start.format == "webm":
                recording = await opened.enter_async_context(
                    engine.recordings.open(self._encoded(), only=Container.WEBM)
                )
                samples = recording.blocks()
            else:
                samples = self._samples(start.sampling_rate)
            hearing = listen(engine, versions, self._blocks(samples), hop, patient=False)
            async for heard in await opened.enter_async_context(aclosing(hearing)):
                await self._tell(heard)
        for event in self._last_events([self._seconds for _ in self._lanes]):
            await self._socket.send(event)
        await self._socket.send({"type": "done", "seconds": round(self._seconds, 6)})
        await self._socket.close()

    async def _tell(self, heard: Heard) -> None:
        lane, version = self._lanes[heard.index], heard.adapter
        self._ends[heard.index] = heard.spans[-1][1]
        for (start, end), scores in zip(heard.spans, heard.values, strict=True):
            labels = rank(version.manifest.labels or (), scores, self._top_k)
            told = [{"label": label, "score": round(float(score), 6)} for label, score in labels]
            window = {"type": "window", "adapter": version.name, "version": version.version, "labels": told}
            await self._socket.send({**window, "start": round(start, 6), "end": round(end, 6)})
        for row in lane.add(heard.values):
            await self._socket.send(_event(row))

    def _last_events(self, ends: Sequence[float]) -> Iterator[Mapping[str, Any]]:
        """Those that are left of each adapter, where it has heard up to `ends`; once."""
        self._socket.left = tuple
        for lane, end in zip(self._lanes, ends, strict=True):
            yield from map(_event, lane.finish(end))

    async def _blocks(self, samples: AsyncIterator[Values]) -> AsyncIterator[Values]:
        """The audio, in blocks of a length that suits the threads. Raises Overloaded where there is no room for it."""
        waiting: list[Values] = []
        async for some in samples:
            waiting.append(some)
            if sum(map(len, waiting)) >= LEAST_SECONDS * SAMPLING_RATE:
                block, waiting = np.concatenate(waiting), []
                for at in range(0, len(block), SAMPLING_RATE):
                    with self._in_time():
                        yield self._count(block[at : at + SAMPLING_RATE])
        if waiting:
            yield self._count(np.concatenate(waiting))

    def _count(self, block: Values) -> Values:
        self._seconds += len(block) / SAMPLING_RATE
        self._call.audio_seconds = round(self._seconds, 3)
        return block

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Ends the stream where the device does not get on with what has come."""
        told = f"the service has no room for more audio since {BEHIND_SECONDS:g} s; try again later"
        error = Overloaded(told, retry_after=BEHIND_SECONDS)
        timer = asyncio.get_running_loop().call_later(BEHIND_SECONDS, self._call.lifetime.end, error)
        try:
            yield
        finally:
            timer.cancel()

    async def _samples(self, rate: int) -> AsyncIterator[Values]:
        """What the client sends as pcm16, at 16 kHz."""
        decoded: list[Values] = []
        mixdown = Mixdown(DecodeLimits(max_seconds=math.inf, max_decoded_bytes=2**62), sink=decoded.append)
        mixdown.begin(rate, 1)
        async for message in self._messages():
            if len(message) % 2:
                raise InvalidRequest(
                    f"a message of pcm16 holds whole samples of 2 bytes each, got {len(message)} bytes"
                )
            mixdown.add(mean_of_channels([np.frombuffer(message, "<i2")]))
            while decoded:
                yield decoded.pop()
        mixdown.end()
        while decoded:
            yield decoded.pop()

    async def _encoded(self) -> AsyncIterator[bytes]:
        """The messages of a recorder. Raises PayloadTooLarge: more than any recording has."""
        left = limit = self._call.context.settings.max_long_bytes
        async for message in self._messages():
            if (left := left - len(message)) < 0:
                raise PayloadTooLarge(f"the stream has more than {limit} bytes (--max-long-bytes); open another one")
            if message:
                yield message

    async def _messages(self) -> AsyncIterator[bytes]:
        """The binary messages, up to the end. Raises InvalidRequest, DeadlineExceeded, ClientDisconnect."""
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    message = await self._socket.receive()
            except TimeoutError as error:
                raise DeadlineExceeded(f"no audio came for {IDLE_SECONDS:g} s") from error
            if isinstance(message, str):
                if '"start"' in message:
                    raise InvalidRequest("a stream starts once; open another one for another format or rate")
                parse_json(message.encode(), Control)
                return
            yield message
