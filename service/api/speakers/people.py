"""Speakers: who is known, with which consent, until when; each in the domain of the caller's key."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Header, Path, Query
from starlette.responses import Response

from service.access.keys import Scope, require_domain
from service.api.auth import SPEAKERS, asks
from service.api.call import Call
from service.api.inference.asking import json_answer, resolve
from service.api.long_json import MAX_PARSED_BYTES, parse_json
from service.api.openapi import body
from service.api.speakers.bodies import (
    EnrolmentInfo,
    ExportedEnrolment,
    SpeakerExport,
    SpeakerInfo,
    SpeakerList,
    SpeakerRequest,
    Standing,
    UseInfo,
)
from service.attempts import Attempt
from service.deadline import Deadline
from service.errors import ServiceError
from service.model.spec import TaskType
from service.registry.store import AdapterVersion
from service.speakers.journal import By, Use
from service.speakers.speaker import Speaker, Status, Voice, require_speaker
from service.speakers.store import SpeakerStore, Terms, Told
from service.speakers.vault import Vector

router: Final = APIRouter(tags=["speakers"])

T = TypeVar("T")

CHANGE_CODES: Final = (
    *("unknown_speaker", "payload_too_large", "overloaded", "conflict", "registry_unavailable", "storage_full"),
)
_READ: Final = asks(
    SPEAKERS,
    *("unknown_speaker", "overloaded", "unknown_adapter", "unknown_version", "wrong_task", "registry_unavailable"),
)
_CHANGE: Final = asks(SPEAKERS, *CHANGE_CODES)

Id = Annotated[str, Path(description="1 to 128 of A-Z, a-z, 0-9, `.`, `_` and `-`.")]
Domain = Annotated[str | None, Query(description="Another domain than the key's own; for `admin`.")]
Adapter = Annotated[str, Query(description="`name`, `name@2` or `name@alias`, of speaker verification.")]
Named = Annotated[str | None, Query(description="The adapter whose status is wanted; all of them without it.")]
Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="A retry with it is answered as the first try was, for a week."),
]


def voice_of(version: AdapterVersion) -> Voice:
    """What speakers need to know of an adapter's version."""
    manifest = version.manifest
    needed = manifest.speech_needed.enrol_seconds
    return Voice(version.name, version.version, version.digest, needed, manifest.embedding_dim or 0)


def progress(seconds: float, needed: float) -> float:
    """How much of the speech that is needed is there, 0 to 1."""
    return 1.0 if seconds >= needed else round(seconds / needed, 6)


@dataclass(frozen=True, slots=True)
class Visit:
    """A request about speakers.

    Args:
        by: whose speakers, and who asks.
    """

    call: Call
    by: By

    @property
    def store(self) -> SpeakerStore:
        return self.call.runtime.speakers

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        return await self.call.context.speaking.run(work, *args)

    async def change(self, work: Callable[[Deadline], T]) -> T:
        return await self.call.change(self.call.context.speaking, work)

    async def answer(self, work: Callable[[Terms], Told], attempt: Attempt | None, status: int = 200) -> Response:
        """Makes a change, once for each of the caller's attempts, and answers it."""
        return told(await self.change(lambda deadline: work(Terms(deadline, attempt))), status)

    def info(self, speaker: Speaker, version: AdapterVersion | None = None) -> SpeakerInfo:
        """A speaker, with where they stand with one adapter, or with each that the caller's key is bound to."""
        now, grant = self.store.now(), self.call.caller.grant
        if version is None:
            names = {enrolment.adapter for enrolment in speaker.enrolments if grant.covers(enrolment.adapter)}
            standings = [_standing(speaker, name, self._live(name), now) for name in sorted(names)]
        else:
            standings = [_standing(speaker, version.name, voice_of(version), now)]
        return SpeakerInfo(status=_overall(speaker, standings, now), adapters=standings, **_kept(speaker))

    def tell(self, speaker: Speaker) -> str:
        return self.info(speaker).model_dump_json()

    def resolve(self, reference: str) -> AdapterVersion:
        """The version of a speaker adapter. Raises UnknownAdapter, UnknownVersion, WrongTask."""
        return resolve(self.call, [reference], TaskType.VERIFICATION)[0]

    def _live(self, adapter: str) -> Voice | None:
        try:
            return voice_of(self.call.runtime.registry.resolve(adapter))
        except ServiceError:  # deleted, or not fit for this backbone: no voiceprint can be of it now
            return None


@contextmanager
def visiting(call: Call, domain: str | None, speaker: str | None = None) -> Iterator[Visit]:
    """A request about the speakers of a domain.

    Raises:
        Forbidden: another domain than the key's own, without `admin`.
        InvalidRequest: what is no domain, or no speaker's id.
        Overloaded: too many are under way.
    """
    caller = call.caller
    if domain is not None and domain != caller.grant.domain:
        caller.require_scope(Scope.ADMIN)
        require_domain(domain)
    if speaker is not None:
        require_speaker(speaker)
    with call.context.speaking.place():
        yield Visit(call, By(domain or caller.grant.domain, caller.actor))


@router.put(
    "/v1/speakers/{speaker}",
    openapi_extra=body({"application/json": SpeakerRequest}, required=False),
    response_model=SpeakerInfo,
    **_CHANGE,
)
async def put_speaker(call: Call, speaker: Id, domain: Domain = None, key: Key = None) -> Response:
    """Makes a speaker, or sets the consent and how long voiceprints are kept; what the body leaves out stays."""
    with visiting(call, domain, speaker) as visit:
        content = await call.read(MAX_PARSED_BYTES)
        fields = parse_json(content, SpeakerRequest).fields(visit.store.now()) if content else {}
        attempt = Attempt.of(key, b"put", speaker.encode(), content)
        return await visit.answer(lambda terms: visit.store.put(visit.by, speaker, fields, visit.tell, terms), attempt)


@router.get("/v1/speakers", response_model=SpeakerList, **_READ)
async def list_speakers(
    call: Call,
    status: Annotated[Status | None, Query(description="Only those who stand so.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Speakers in one answer.")] = 100,
    after: Annotated[
        str, Query(max_length=128, pattern=r"^[^\x00]*$", description="`next` of the answer before.")
    ] = "",
    adapter: Named = None,
    domain: Domain = None,
) -> Response:
    """The speakers of a domain, by id; those who only opted out too."""
    with visiting(call, domain) as visit:
        version = None if adapter is None else visit.resolve(adapter)

        def page() -> SpeakerList:
            found: list[SpeakerInfo] = []
            for one in visit.store.walk(visit.by.domain, after):
                told = visit.info(one, version)
                if status in (None, told.status):
                    if len(found) == limit:
                        return SpeakerList(speakers=found, next=found[-1].speaker)
                    found.append(told)
            return SpeakerList(speakers=found)

        return json_answer(await visit.run(lambda: page().model_dump_json()))


@router.get("/v1/speakers/{speaker}", response_model=SpeakerInfo, **_READ)
async def get_speaker(call: Call, speaker: Id, adapter: Named = None, domain: Domain = None) -> Response:
    """One speaker: consent, status and enrolments, without the vectors."""
    with visiting(call, domain, speaker) as visit:
        version = None if adapter is None else visit.resolve(adapter)
        found = await visit.run(visit.store.find, visit.by.domain, speaker)
        return json_answer(visit.info(found, version).model_dump_json())


@router.get("/v1/speakers/{speaker}/export", response_model=SpeakerExport, **_READ)
async def export_speaker(call: Call, speaker: Id, domain: Domain = None) -> Response:
    """All that is stored of a person: consent, enrolments with their vectors, and who used them when.

    A key that is bound to some adapters is told of these.
    """
    with visiting(call, domain, speaker) as visit:
        covers = call.caller.grant.covers
        return json_answer(
            await visit.run(lambda: _export(*visit.store.export(visit.by, speaker), covers).model_dump_json())
        )


@router.delete("/v1/speakers/{speaker}", status_code=204, **_CHANGE)
async def delete_speaker(call: Call, speaker: Id, domain: Domain = None, key: Key = None) -> Response:
    """Removes everything of a person for good, but that they have opted out."""
    with visiting(call, domain, speaker) as visit:
        attempt = Attempt.of(key, b"delete", speaker.encode())
        return await visit.answer(lambda terms: visit.store.delete(visit.by, speaker, terms), attempt, 204)


@router.delete("/v1/speakers/{speaker}/enrolments/{enrolment}", status_code=204, **_CHANGE)
async def delete_enrolment(
    call: Call,
    speaker: Id,
    enrolment: Annotated[int, Path(ge=1, le=2**31 - 1)],
    domain: Domain = None,
    key: Key = None,
) -> Response:
    """Removes one enrolment for good."""
    with visiting(call, domain, speaker) as visit:
        attempt = Attempt.of(key, b"delete", speaker.encode(), str(enrolment).encode())
        return await visit.answer(
            lambda terms: visit.store.delete_enrolment(visit.by, speaker, enrolment, terms), attempt, 204
        )


@router.post("/v1/speakers/{speaker}/opt-out", response_model=SpeakerInfo, **_CHANGE)
async def opt_out(call: Call, speaker: Id, domain: Domain = None, key: Key = None) -> Response:
    """Removes a person's voiceprints and takes no more of them; also of an id that is not known."""
    with visiting(call, domain, speaker) as visit:
        attempt = Attempt.of(key, b"opt-out", speaker.encode())
        return await visit.answer(lambda terms: visit.store.opt_out(visit.by, speaker, visit.tell, terms), attempt)


@router.post("/v1/speakers/{speaker}/opt-in", response_model=SpeakerInfo, **_CHANGE)
async def opt_in(call: Call, speaker: Id, domain: Domain = None, key: Key = None) -> Response:
    """Lifts an opt-out; the person has to be enrolled anew."""
    with visiting(call, domain, speaker) as visit:
        attempt = Attempt.of(key, b"opt-in", speaker.encode())
        return await visit.answer(lambda terms: visit.store.opt_in(visit.by, speaker, visit.tell, terms), attempt)


def told(answer: Told, status: int = 200) -> Response:
    """The answer to a change."""
    headers = {"Idempotency-Replayed": "true"} if answer.replayed else {}
    if status == 204:
        return Response(status_code=status, headers=headers)
    return Response(answer.answer, status, headers, media_type="application/json")


def _export(
    speaker: Speaker, vectors: dict[int, Vector], uses: Sequence[Use], covers: Callable[[str], bool]
) -> SpeakerExport:
    """Everything of a person, as far as the caller's key `covers` the adapters."""
    enrolments = [
        ExportedEnrolment(embedding=vectors[enrolment.id].tolist(), **asdict(enrolment))
        for enrolment in speaker.enrolments
        if covers(enrolment.adapter)
    ]
    told = [UseInfo.model_validate(use) for use in uses if use.adapter is None or covers(use.adapter)]
    return SpeakerExport(domain=speaker.domain, enrolments=enrolments, uses=told, **_kept(speaker))


def _overall(speaker: Speaker, standings: Sequence[Standing], now: datetime) -> Status:
    """The furthest that the speaker has come with any adapter."""
    if speaker.opted_out is not None:
        return Status.OPTED_OUT
    found = {standing.status for standing in standings}
    if not found and speaker.has_expired(now):
        return Status.EXPIRED
    return next((one for one in (Status.ENROLLED, Status.STALE, Status.EXPIRED) if one in found), Status.PENDING)


def _standing(speaker: Speaker, adapter: str, voice: Voice | None, now: datetime) -> Standing:
    enrolments = [EnrolmentInfo.model_validate(one) for one in speaker.enrolments if one.adapter == adapter]
    if voice is None:  # the adapter is gone
        status, seconds = _overall(speaker, (), now), 0.0
        status = Status.STALE if status is Status.PENDING else status
    else:
        status, seconds = speaker.status(voice, now), speaker.speech_seconds(voice.digest)
    return Standing(
        adapter=adapter,
        version=voice.version if voice else None,
        digest=voice.digest if voice else None,
        status=status,
        speech_seconds=round(seconds, 6),
        needed_seconds=voice.enrol_seconds if voice else None,
        progress=progress(seconds, voice.enrol_seconds) if voice else 0.0,
        enrolments=enrolments,
    )


def _kept(speaker: Speaker) -> dict[str, Any]:
    """What is told of a speaker, whoever asks."""
    told = {name: getattr(speaker, name) for name in ("created", "used", "expires", "opted_out", "consent")}
    return {"speaker": speaker.id} | told
