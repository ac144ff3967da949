"""Events of a job: a recording on disk heard a chunk at a time, each of which is heard once whatever happens.

The job's log holds the scores of the windows. What makes events of them does not depend on how they were chunked, so a
job that goes on tells what it would have told without a break.
"""

import asyncio
import io
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from starlette.responses import Response

from service.api.inference.asking import clip_info
from service.api.inference.events import Found, answer
from service.api.inference.lanes import EventRules, Lane, parameters_of
from service.api.jobs.running import LATER, Outcome, Taken
from service.api.problems import told
from service.engine.listening import Heard
from service.engine.recording import Recording
from service.errors import StorageFull
from service.timeline.tables import Row
from service.timeline.timeline import Event

CHUNK_SECONDS: Final = 1.0  # of work, which is done anew where it breaks off
_READ_BYTES: Final = 2**17


async def hear_recording(taken: Taken) -> Outcome:
    """The result of a job of events, also where its recording breaks after its first window. Raises one of LATER."""
    job, asked = taken.job, taken.job.asked
    engine, registry = taken.runtime.engine, taken.runtime.registry
    rules = EventRules(**asked["parameters"])
    lanes = [Lane(registry.resolve(reference), rules) for reference in job.adapters]
    found = _Logged(lanes, rules.hop, asked["file"])
    with taken.log.read() as file:
        await asyncio.to_thread(found.replay, file)
    body = _Body(taken)
    clock, kept = asyncio.get_running_loop().time, 0.0
    async with (
        aclosing(body.chunks()) as chunks,
        engine.recordings.open(chunks) as recording,
        aclosing(found.hear(engine, recording, min(lane.windows for lane in lanes))) as hearing,
    ):
        async for _ in hearing:
            if clock() - kept > CHUNK_SECONDS:
                await taken.keep(found.take_chunk(), min(0.999, body.read / max(1, job.size)), found.seconds)
                kept = clock()
    if isinstance(found.error, (*LATER, StorageFull)):
        raise found.error
    return Outcome(_result(lanes, found, recording), found.error, found.seconds)


def result(kind: str, content: bytes) -> Response:
    """The answer of a media type to what such a job left."""
    left = json.loads(content)
    rows = [Row(event=Event(**row.pop("event")), **row) for row in left["rows"]]
    return answer(kind, rows, left["parameters"], left["audio"], left["error"])


class _Body:
    """The recording as it is read; `read` of its bytes so far."""

    def __init__(self, taken: Taken) -> None:
        self.read = 0
        self._path: Path = taken.runtime.jobs.body(taken.job)

    async def chunks(self) -> AsyncGenerator[bytes]:
        with self._path.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, _READ_BYTES):
                self.read += len(chunk)
                yield chunk


class _Logged(Found):
    """What was found, of which scores that are not in the log yet are kept for it."""

    def __init__(self, lanes: Sequence[Lane], hop: float, file: str) -> None:
        super().__init__(lanes, hop, file)
        self._chunk = io.BytesIO()

    def replay(self, log: BinaryIO) -> None:
        """Takes what was heard before."""
        while True:
            try:
                place = np.load(log, allow_pickle=False)
            except EOFError:
                return
            scores = np.load(log, allow_pickle=False)
            index, self.ends[int(place[0])], self.seconds = int(place[0]), float(place[1]), float(place[2])
            self.keep(self.lanes[index].add(scores))

    def take(self, heard: Heard) -> list[Row]:
        scores = self.lanes[heard.index].fresh(heard.number, heard.values)
        np.save(self._chunk, np.array([heard.index, heard.spans[-1][1], heard.seconds]), allow_pickle=False)
        np.save(self._chunk, scores, allow_pickle=False)
        return super().take(heard)

    def take_chunk(self) -> bytes:
        chunk, self._chunk = self._chunk.getvalue(), io.BytesIO()
        return chunk


def _result(lanes: Sequence[Lane], found: Found, recording: Recording) -> bytes:
    error: Mapping[str, Any] | None = None if found.error is None else told(found.error)
    told_of = {"parameters": parameters_of(lanes), "audio": clip_info(recording), "error": error}
    return json.dumps({"rows": [asdict(row) for row in found.rows], **told_of}).encode()
