"""Events of a recording, `POST /v1/events`: what was heard from when to when, while the recording still comes."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, Final, cast

from fastapi import APIRouter, Header
from pydantic import TypeAdapter
from starlette.responses import Response

from service.answers import ClipInfo, EventsAnswer
from service.api.auth import INFER, asks
from service.api.bodies import open_clip
from service.api.call import Call
from service.api.inference.asking import ERRORS, References, clip_info, json_answer
from service.api.inference.lanes import Lane, Rules, lanes_of, parameters_of
from service.api.lines import NDJSON, Lines, encoded
from service.api.openapi import BYTES, body, form
from service.api.problems import told
from service.engine.engine import Engine
from service.engine.listening import Heard, listen
from service.engine.recording import Recording
from service.errors import NotAcceptable, ServiceError
from service.timeline.tables import Row, Table

router: Final = APIRouter(tags=["inference"])

JSON: Final = "application/json"
TABLES: Final[Mapping[str, str]] = {  # of media types, the form of the timeline's tables
    "text/csv": "csv",
    "text/x-audacity-labels": "audacity",
    "text/x-raven-table": "raven",
}
FORMS: Final = (JSON, NDJSON, *TABLES)
BROKEN: Final = "X-Recording-Error"  # of a table, which has no room for it
_ANSWER: Final = TypeAdapter(EventsAnswer)
_WEIGHT: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")  # RFC 9110, 12.4.2
RECORDING_BODY: Final = body(
    {"application/octet-stream": BYTES, "audio/*": BYTES, "multipart/form-data": form("audio", audio=BYTES)},
    "One recording as the raw body, or as the multipart part `audio`, whose file name the tables tell.",
)
TURN_SECONDS: Final = 3600.0  # for the device to get on with what has come: requests go first
_ROUTE: Final = asks(INFER, *ERRORS, "not_acceptable", "storage_full")
_ROUTE["responses"][200] = {"content": {kind: {"schema": {"type": "string"}} for kind in FORMS[1:]}}

Accept = Annotated[str | None, Header(description=f"One of {', '.join(FORMS)}; the first of these without it.")]


def form_of(accept: str | None, forms: Sequence[str] = FORMS) -> str:
    """The media type of an answer, as a request accepts it. Raises NotAcceptable."""
    weights: dict[str, tuple[float, int]] = {}  # the first of equal ones counts
    for number, one in enumerate((accept or "*/*").split(",")):
        kind, *parameters = (part.strip().lower() for part in one.split(";"))
        weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        if not _WEIGHT.fullmatch(weight):
            raise NotAcceptable(f"Accept: {one.strip()[:80]!r} has no weight from 0 to 1")
        weights[kind] = max((float(weight), -number), weights.get(kind, (0.0, -number)))

    def weigh(offered: str) -> tuple[float, int, int]:
        """The weight of the most specific range that holds it (RFC 9110, 12.5.1), how specific, and its order."""
        for rank, kind in enumerate((offered, f"{offered.partition('/')[0]}/*", "*/*")):
            if kind in weights:
                weight, order = weights[kind]
                return weight, -rank, order
        return 0.0, 0, 0

    best = max(forms, key=weigh)
    if weigh(best)[0] > 0:
        return best
    raise NotAcceptable(f"Accept: {(accept or '')[:80]!r} is none of the forms there are: {', '.join(forms)}")


class Found:
    """What was found in one recording, by several adapters on one pass.

    Attributes:
        rows: in the order in which they became certain.
        seconds: heard so far.
        error: that it broke with, after its first window.
    """

    def __init__(self, lanes: Sequence[Lane], hop: float, file: str = "") -> None:
        self.rows: list[Row] = []
        self.seconds = 0.0
        self.error: ServiceError | None = None
        self.lanes = lanes
        self.ends = [0.0 for _ in lanes]  # of each one's last window
        self._hop = hop
        self._file = file

    async def hear(self, engine: Engine, recording: Recording, first: int = 0) -> AsyncGenerator[Sequence[Row]]:
        """Listens to a recording; the events that have become certain, whenever windows were heard.

        Args:
            first: number of the first window that was not heard before.

        Raises:
            ServiceError: before anything was heard.
        """
        versions = [lane.version for lane in self.lanes]
        try:
            async with aclosing(listen(engine, versions, recording.blocks(), self._hop, first=first)) as hearing:
                async for heard in hearing:
                    self.seconds, self.ends[heard.index] = heard.seconds, heard.spans[-1][1]
                    yield self.keep(self.take(heard))
            self.seconds = recording.seconds
            ends = [self.seconds for _ in self.lanes]
        except ServiceError as error:
            if not self.seconds:
                raise
            self.error, ends = error, self.ends
            error.at = round(max(ends), 6)
        yield self.keep([row for lane, end in zip(self.lanes, ends, strict=True) for row in lane.finish(end)])

    def take(self, heard: Heard) -> list[Row]:
        """Takes windows, of which some may have been heard before; the events that have become certain."""
        lane = self.lanes[heard.index]
        return lane.add(lane.fresh(heard.number, heard.values))

    def keep(self, rows: Sequence[Row]) -> Sequence[Row]:
        named = [replace(row, file=self._file) for row in rows]
        self.rows += named
        return named


def answer(
    kind: str,
    rows: Sequence[Row],
    parameters: Mapping[str, Any],
    audio: ClipInfo,
    error: Mapping[str, Any] | None,
) -> Response:
    """The answer of a media type, its events by their start; `error` is the problem with which it broke."""
    rows = sorted(rows, key=lambda row: (row.event.start, row.event.end))
    broken = {} if error is None else {"error": error}
    if kind == NDJSON:
        last = {"type": "error", **broken} if broken else {"type": "done", "audio": audio, "parameters": parameters}
        return Response(encoded(*({"type": "event", **row.told()} for row in rows), last), media_type=NDJSON)
    if kind == JSON:
        document: dict[str, Any] = {"events": [row.told() for row in rows], "audio": audio, "parameters": parameters}
        return json_answer(_ANSWER.dump_json(cast(EventsAnswer, document | broken)))
    table = Table(TABLES[kind])
    headers = {} if error is None else {BROKEN: f"{error['code']}; at={error.get('at')}"}
    return Response(table.head + "".join(map(table.line, rows)) + table.tail, headers=headers, media_type=kind)


@router.post(
    "/v1/events",
    response_model=EventsAnswer,
    openapi_extra=RECORDING_BODY,
    **_ROUTE,
)
async def events(call: Call, adapter: References, rules: Rules, accept: Accept = None) -> Response:
    """What was heard from when to when in one recording of up to hours, by one or more adapters.

    It is decoded and heard as it arrives. One that breaks after its first window is answered with the events until
    then, and `error`.
    """
    kind = form_of(accept)
    lanes = lanes_of(call, adapter, rules)
    engine = call.runtime.engine
    engine.check_ready([lane.version for lane in lanes])
    clip = await open_clip(call, call.context.settings.max_long_bytes)
    found = Found(lanes, rules.hop, clip.file)
    call.lines = Lines(call.send) if kind == NDJSON else None
    with call.while_connected(clip.ended):
        async with engine.recordings.open(_renewing(call, clip.chunks), seconds=call.lifetime.seconds) as recording:
            async for rows in found.hear(engine, recording):
                call.lifetime.renew(TURN_SECONDS)
                if call.lines is not None:
                    lines: list[dict[str, Any]] = [{"type": "event", **row.told()} for row in rows]
                    await call.lines.send(*lines, {"type": "progress", "seconds": round(found.seconds, 6)})
    call.audio_seconds = round(recording.seconds, 3)
    parameters, audio = parameters_of(lanes), clip_info(recording)
    if call.lines is None:
        return answer(kind, found.rows, parameters, audio, None if found.error is None else told(found.error))
    if found.error is not None:
        return call.lines.broken(found.error)
    return call.lines.ended({"type": "done", "audio": audio, "parameters": parameters})


async def _renewing(call: Call, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A recording has no deadline in all: its bytes have one, each time, and then it waits for the device."""
    async for chunk in chunks:
        call.lifetime.renew(TURN_SECONDS)
        yield chunk
