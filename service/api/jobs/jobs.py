"""Jobs: what is asked now and answered later, each in the domain of the caller's key."""

import asyncio
import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from service import answers
from service.access.keyring import Caller
from service.access.keys import Scope
from service.api.auth import ANY_KEY, INFER, SPEAKERS, asks
from service.api.bodies import open_clip, stream_parts
from service.api.call import Call
from service.api.inference.asking import References
from service.api.inference.events import FORMS, RECORDING_BODY, Accept, form_of
from service.api.inference.lanes import Rules, lanes_of
from service.api.jobs import bulk, hearing
from service.api.openapi import CLIPS, body
from service.api.speakers.people import Adapter, Domain, Key, visiting
from service.attempts import Attempt
from service.deadline import Deadline
from service.errors import InvalidRequest, PayloadTooLarge, UnknownJob
from service.jobs.files import Spool
from service.jobs.job import Job, Kind, Status
from service.jobs.quota import JobQuota
from service.jobs.store import JobStore
from service.speakers.speaker import require_speaker

router: Final = APIRouter(tags=["jobs"])

T = TypeVar("T")

MAX_CLIPS: Final = 10_000  # of one enrolment in bulk
_FLUSH_BYTES: Final = 2**18  # held in memory before they are written
_SCOPES: Final = {Kind.EVENTS: Scope.INFER, Kind.ENROLMENT: Scope.SPEAKERS}
_CODES: Final = ("unknown_job", "overloaded", "registry_unavailable")
_READ: Final = asks(ANY_KEY, *_CODES)
_RESULT: Final = asks(ANY_KEY, *_CODES, "conflict", "not_acceptable")
ADD_CODES: Final = (
    *("overloaded", "registry_unavailable", "storage_full", "payload_too_large", "unknown_adapter", "unknown_version"),
    *("wrong_task", "backbone_mismatch", "adapter_failed"),
)

Id = Annotated[str, Path(max_length=64)]


@asynccontextmanager
async def spooling(call: Call, key: str | None) -> AsyncIterator[Spool]:
    """Room for a body on disk, gone afterwards unless it has become a job's. Raises Overloaded, StorageFull."""
    pool, grant = call.context.spooling, call.caller.grant
    if (quota := JobQuota.of(grant, call.context.settings)) is not None:
        store, actor = call.runtime.jobs, call.caller.actor
        await call.context.queueing.once(lambda: store.check_quota(grant.domain, actor, quota, key))
    with pool.place():
        spool = await pool.run(call.runtime.jobs.spool)
        try:
            yield spool
        finally:
            await asyncio.shield(pool.run(spool.discard))


async def add(
    call: Call, kind: Kind, asked: dict[str, Any], spool: Spool, key: str | None, references: Sequence[str]
) -> Response:
    """The answer to a new job, once it is stored.

    Args:
        references: the adapters as the caller named them: a retry is the same whatever these mean by then.

    Raises:
        Overloaded, StorageFull: too many jobs, or too large. InvalidRequest: the key was used for another.
    """
    store, caller = call.runtime.jobs, call.caller
    attempt = Attempt.of(key, kind.encode(), json.dumps({**asked, "adapters": references}).encode(), spool.digest)
    quota = JobQuota.of(caller.grant, call.context.settings)

    def insert(deadline: Deadline) -> tuple[Job, bool]:
        return store.add(
            caller.grant.domain, caller.actor, kind, asked, spool, quota=quota, attempt=attempt, deadline=deadline
        )

    job, replayed = await call.change(call.context.queueing, insert)
    call.context.job_came.set()
    headers = {"Location": f"/v1/jobs/{job.id}"} | ({"Idempotency-Replayed": "true"} if replayed else {})
    answer = answers.JobAdded(id=job.id, status=Status.QUEUED)  # as the first try was answered
    return Response(json.dumps(answer), 202, headers, media_type="application/json")


@router.post(
    "/v1/jobs",
    status_code=202,
    response_model=answers.JobAdded,
    openapi_extra=RECORDING_BODY,
    **asks(INFER, *ADD_CODES),
)
async def add_events(call: Call, adapter: References, rules: Rules, key: Key = None) -> Response:
    """What `/v1/events` does, later: answered once the recording is stored whole."""
    lanes = lanes_of(call, adapter, rules)
    async with spooling(call, key) as spool:
        clip = await open_clip(call, call.context.settings.max_long_bytes)
        async with flushing(call, spool) as write:
            async for chunk in clip.chunks:
                await write(chunk)
        if not spool.size:
            raise InvalidRequest("the recording is empty; send the bytes of an audio file")
        versions = [lane.version.reference for lane in lanes]
        asked = {"adapters": versions, "parameters": asdict(rules), "file": clip.file}
        return await add(call, Kind.EVENTS, asked, spool, key, adapter)


@router.post(
    "/v1/speakers/jobs",
    status_code=202,
    response_model=answers.JobAdded,
    openapi_extra=body(
        {"multipart/form-data": {"type": "object", "additionalProperties": CLIPS, "minProperties": 1}},
        "The clips of many speakers: each part is one clip and is named by the speaker's id.",
    ),
    **asks(SPEAKERS, *ADD_CODES),
)
async def enrol_many(call: Call, adapter: Adapter, domain: Domain = None, key: Key = None) -> Response:
    """Enrols many speakers, one after the other; who is enrolled by as many clips already is skipped."""
    with visiting(call, domain) as visit:
        version = visit.resolve(adapter)
        async with spooling(call, key) as spool:
            index = await _read_people(call, spool)
            await visit.run(spool.keep_index, json.dumps(index).encode())
            asked = {"adapters": [version.reference], "domain": visit.by.domain, "speakers": len(index)}
            return await add(call, Kind.ENROLMENT, asked, spool, key, [adapter])


async def _read_people(call: Call, spool: Spool) -> dict[str, list[tuple[int, int]]]:
    """Spools the clips: where each speaker's begin in the body, and their bytes.

    Raises:
        InvalidRequest: no clip, an empty one, a name that is no speaker's, or more clips of one than a request takes.
        PayloadTooLarge: those of one speaker are more than a request takes.
    """
    settings = call.context.settings
    index: dict[str, list[tuple[int, int]]] = {}
    sizes: Counter[str] = Counter()
    async with flushing(call, spool) as write:
        async for piece in stream_parts(call, None, MAX_CLIPS, settings.max_long_bytes):
            name = piece.name
            if piece.begins:
                clips = index.setdefault(require_speaker(name), [])
                clips.append((sum(sizes.values()), 0))
                if len(clips) > settings.max_clips:
                    raise InvalidRequest(f"a speaker is enrolled by up to {settings.max_clips} clips at once: {name}")
            start, size = index[name][-1]
            index[name][-1] = start, size + len(piece.content)
            sizes[name] += len(piece.content)
            if sizes[name] > settings.max_body_bytes:
                raise PayloadTooLarge(f"the clips of {name} are more than {settings.max_body_bytes} bytes")
            await write(piece.content)
    if empty := [name for name, clips in index.items() if not all(size for _, size in clips)]:
        raise InvalidRequest(f"a clip of {empty[0]} is empty; send the bytes of an audio file")
    if not index:
        raise InvalidRequest("the multipart body has no part; send each clip as one, named by its speaker's id")
    return index


@asynccontextmanager
async def flushing(call: Call, spool: Spool) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
    """Writes pieces to disk, many at once; each time the request may live for as long again."""
    waiting = io.BytesIO()

    async def flush() -> None:
        nonlocal waiting
        await call.context.spooling.run(spool.write, waiting.getvalue())
        waiting = io.BytesIO()

    async def write(piece: bytes) -> None:
        call.lifetime.renew()
        if waiting.write(piece) and waiting.tell() >= _FLUSH_BYTES:
            await flush()

    yield write
    await flush()


@router.get("/v1/jobs", **_READ)
async def list_jobs(
    call: Call,
    status: Annotated[Status | None, Query(description="Only those that stand so.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Jobs in one answer.")] = 100,
    after: Annotated[
        str, Query(max_length=64, pattern=r"^[0-9a-f]*$", description="`next` of the answer before.")
    ] = "",
) -> answers.JobList:
    """The jobs of the key's domain, newest first, as far as the key may ask for such."""
    store, caller = call.runtime.jobs, call.caller
    found: list[Job] = []

    def pages() -> None:
        last = after
        while len(found) <= limit and (page := store.page(caller.grant.domain, status, last, limit + 1)):
            found.extend(job for job in page if _may_see(caller, job))
            last = page[-1].id

    await call.context.queueing.once(pages)
    listed = [_info(store, job) for job in found[:limit]]
    return {"jobs": listed, "next": listed[-1]["id"] if len(found) > limit else None}


@router.get("/v1/jobs/{job}", **_READ)
async def get_job(call: Call, job: Id) -> answers.Job:
    """How far a job has come."""
    return _info(call.runtime.jobs, await _find(call, job))


@router.get("/v1/jobs/{job}/result", response_model=None, **_RESULT)
async def get_result(call: Call, job: Id, accept: Accept = None) -> Response:
    """What came of a job, also of one that failed in the midst; of events in every form of `/v1/events`."""
    found = await _find(call, job)
    kind = form_of(accept, FORMS if found.kind is Kind.EVENTS else bulk.FORMS)
    content = await call.context.queueing.once(call.runtime.jobs.result(found).read_bytes)
    make = hearing.result if found.kind is Kind.EVENTS else bulk.result
    return await asyncio.to_thread(make, kind, content)


@router.delete("/v1/jobs/{job}", status_code=204, **_READ)
async def delete_job(call: Call, job: Id) -> None:
    """Cancels a job; removes one that has ended, with its result."""
    found = await _find(call, job)
    with call.writing(call.context.queueing):
        drop: Callable[[Deadline], None] = lambda deadline: call.runtime.jobs.drop(found.domain, found.id, deadline)  # noqa: E731
        await call.change(call.context.queueing, drop)


async def _find(call: Call, job: str) -> Job:
    """A job that the caller may see. Raises UnknownJob."""
    found = await call.context.queueing.once(call.runtime.jobs.find, call.caller.grant.domain, job)
    if not _may_see(call.caller, found):
        raise UnknownJob(f"there is no job {job[:80]!a} that this key may see")
    return found


def _may_see(caller: Caller, job: Job) -> bool:
    covers = caller.grant.covers
    return caller.grant.allows(_SCOPES[job.kind]) and all(covers(one.partition("@")[0]) for one in job.adapters)


def _info(store: JobStore, job: Job) -> answers.Job:
    return {
        "id": job.id,
        "kind": job.kind,
        "status": job.status,
        "progress": round(job.progress, 6),
        "seconds": round(job.seconds, 6),
        "adapters": list(job.adapters),
        "created": job.created.isoformat(),
        "started": _iso(job.started),
        "ended": _iso(job.ended),
        "expires": _iso(job.ended and job.ended + store.retention),
        "bytes": job.size,
        "error": job.error,
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
