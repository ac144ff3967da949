"""Enrolment in bulk: the speakers of a job one after the other, each once, however often the job is taken up."""

import asyncio
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from starlette.responses import Response

from service.api.bodies import Reservation
from service.api.inference.asking import json_answer
from service.api.inference.events import JSON
from service.api.jobs.running import LATER, Outcome, Taken
from service.api.speakers.people import voice_of
from service.api.speakers.voices import enrolled, spoken_by
from service.attempts import Attempt
from service.engine.job import Values
from service.engine.prepare import Clip
from service.errors import AudioTooLong, BadAudio, Overloaded, ServiceError
from service.jobs.files import INDEX
from service.registry.store import AdapterVersion
from service.speakers.journal import By
from service.speakers.speaker import Enrolment, Speaker, Status
from service.speakers.store import Terms, check_may_enrol

COLUMNS: Final = ("speaker", "clips", "result", "speech_seconds", "needed_seconds", "note")
FORMS: Final = (JSON, "text/csv")
PATIENCE_SECONDS: Final = 0.5  # between tries where the queue is full: requests go first

Places = Sequence[tuple[int, int]]


async def enrol_people(taken: Taken) -> Outcome:
    """The result of a job of enrolments: a row for each speaker, as `ipet speakers enrol` has them."""
    job, run = taken.job, taken.context.queueing.run
    version = taken.runtime.registry.resolve(job.adapters[0])
    body = taken.runtime.jobs.body(job)
    people: list[tuple[str, Places]] = list(json.loads(await run(body.with_name(INDEX).read_bytes)).items())
    with taken.log.read() as file:
        rows: list[dict[str, Any]] = [json.loads(line) for line in file]
    seconds = job.seconds
    for number, (speaker, places) in list(enumerate(people))[len(rows) :]:
        clips = await run(_cut, body, places)
        row, heard = await _Enrolling(taken, version, speaker, number).enrol(clips)
        seconds += heard
        rows.append({"speaker": speaker, "clips": len(clips), **row})
        await taken.keep(json.dumps(rows[-1]).encode() + b"\n", len(rows) / len(people), seconds)
    return Outcome(json.dumps({"speakers": rows}).encode(), seconds=seconds)


def result(kind: str, content: bytes) -> Response:
    """The answer of a media type to what such a job left."""
    if kind == JSON:
        return json_answer(content)
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(json.loads(content)["speakers"])
    return Response(table.getvalue(), media_type=kind)


class _Enrolling:
    """One speaker of a job."""

    def __init__(self, taken: Taken, version: AdapterVersion, speaker: str, number: int) -> None:
        job = taken.job
        self._taken = taken
        self._store, self._run = taken.runtime.speakers, taken.context.speaking.run
        self._version = version
        self._speaker = speaker
        self._voice = voice_of(version)
        self._by = By(job.asked["domain"], job.actor)
        self._once = Attempt(f"job-{job.id}-{number}", "")  # however often it is tried
        self._notes: list[str] = []
        self._result = ""
        self._seconds = 0.0

    async def enrol(self, clips: Sequence[bytes]) -> tuple[dict[str, Any], float]:
        """What came of it, and seconds of audio heard. Raises one of LATER."""
        try:
            row = await self._enrol(clips)
        except LATER:
            raise
        except ServiceError as error:
            row = {"result": error.code, "note": error.detail}
        return row, self._seconds

    async def _enrol(self, clips: Sequence[bytes]) -> dict[str, Any]:
        store, run, by = self._store, self._run, self._by
        known = await run(store.recall, by, self._once)
        if known is None:
            removals = await run(store.removals, by.domain, self._speaker)
            before = await run(store.look, by.domain, self._speaker)
            needs_consent = self._taken.context.settings.require_consent
            check_may_enrol(before, needs_consent)
            is_enrolled = before.status(self._voice, store.now()) is Status.ENROLLED
            if is_enrolled and len(self._old(before)) >= len(clips):
                return {"result": "skipped"}
            heard, windows = await self._listen(clips)
            if not heard:
                return {"result": self._result, "note": " ".join(self._notes)}
            spoken = await asyncio.to_thread(spoken_by, self._version, heard, windows)
            if not is_enrolled:
                await self._forget(self._old(before))  # what was begun with: the same clips must not count twice

            def tell(after: Speaker, added: list[Enrolment | None]) -> str:
                return enrolled(after, self._voice, spoken, added, store.now()).model_dump_json()

            terms = Terms(attempt=self._once)
            known = await run(
                lambda: store.enrol(
                    by,
                    self._speaker,
                    self._voice,
                    spoken,
                    tell,
                    removals=removals,
                    needs_consent=needs_consent,
                    terms=terms,
                )
            )
        return await self._settle(json.loads(known.answer))

    async def _settle(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Leaves the older enrolments or the new ones, whichever make a voiceprint."""
        added = {one["id"] for one in answer["enrolments"] if one["id"] is not None}
        seconds = round(sum(one["speech_seconds"] for one in answer["enrolments"]), 6)
        old = [
            one
            for one in self._old(await self._run(self._store.look, self._by.domain, self._speaker))
            if one not in added
        ]
        result = answer["status"]
        if old and seconds < self._voice.enrol_seconds:
            await self._forget(sorted(added))
            self._notes.append("older enrolments stay")
            result = "not_enough_speech"
        else:
            await self._forget(old)
        notes = [*self._notes, *dict.fromkeys(word for one in answer["enrolments"] for word in one["warnings"])]
        return {
            "result": self._result or result,
            "speech_seconds": seconds,
            "needed_seconds": self._voice.enrol_seconds,
            "note": " ".join(notes),
        }

    async def _listen(self, clips: Sequence[bytes]) -> tuple[list[Clip], list[Values]]:
        """The clips that can be heard, without what the adapter read of them, and its embeddings."""
        heard: list[Clip] = []
        windows: list[Values] = []
        for number, content in enumerate(clips):
            try:
                clip, values = await self._hear(content)
            except (BadAudio, AudioTooLong) as error:
                self._result = self._result or error.code
                self._notes.append(f"clip {number}: {error.detail}")
                continue
            self._seconds += clip.seconds
            heard.append(replace(clip, reads=()))
            windows.append(values)
        return heard, windows

    async def _hear(self, content: bytes) -> tuple[Clip, Values]:
        """One clip, whenever the queue has room for it."""
        engine, reservation = self._taken.runtime.engine, Reservation(self._taken.context.budget)
        while True:
            try:
                async with engine.admit([self._version]) as place:
                    clips = await place.prepare([content], reservation.add)
                    return clips[0], (await place.infer(clips))[0][0].finite()
            except Overloaded:
                await asyncio.sleep(PATIENCE_SECONDS)
            finally:
                reservation.release()

    def _old(self, speaker: Speaker) -> list[int]:
        return [one.id for one in speaker.of(self._voice.digest)]

    async def _forget(self, enrolments: Sequence[int]) -> None:
        for enrolment in enrolments:
            await self._run(self._store.delete_enrolment, self._by, self._speaker, enrolment)


def _cut(body: Path, places: Places) -> list[bytes]:
    with body.open("rb") as file:
        clips = []
        for start, size in places:
            file.seek(start)
            clips.append(file.read(size))
        return clips
