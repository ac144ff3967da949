"""Speakers: consent, enrolment, verification, opt-out, export and deletion, each in the domain of the caller's key."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from starlette.responses import Response

from service.access.keys import Scope
from service.api import speakers as shown
from service.api.auth import SPEAKERS, caller_of
from service.api.bodies import read_body
from service.api.clips import read_clips
from service.api.lifetime import while_connected
from service.api.long_json import MAX_PARSED_BYTES, parse_json
from service.api.openapi import AUDIO_BODY, SPEAKER_BODY, errors
from service.api.outputs import ERRORS, json_answer
from service.api.visits import visiting
from service.errors import InvalidRequest
from service.registry.store import AdapterVersion
from service.scoring.score import enrol as mean_of
from service.speakers import verifying
from service.speakers.journal import Attempt, By
from service.speakers.speaker import Enrolment, Reference, Speaker, Spoken, Status, require_speaker
from service.speakers.store import SpeakerStore, Terms, Told, check_may_enrol
from service.speakers.verifying import Threshold, Verdict

router: Final = APIRouter(tags=["speakers"])

_CODES: Final = ("unknown_speaker", "invalid_request", "unauthorized", "forbidden", "not_ready", "overloaded")
_CODES_OF_CHANGES: Final = (*_CODES, "conflict", "deadline_exceeded", "registry_unavailable", "storage_full")
_READ: Final[dict[str, Any]] = {
    "dependencies": [Depends(SPEAKERS)],
    "responses": errors(*_CODES, "unknown_adapter", "unknown_version", "wrong_task", "registry_unavailable"),
}
_CHANGE: Final[dict[str, Any]] = {"dependencies": [Depends(SPEAKERS)], "responses": errors(*_CODES_OF_CHANGES)}
_LISTEN: Final[dict[str, Any]] = {
    "dependencies": [Depends(SPEAKERS)],
    "responses": errors(
        *dict.fromkeys((*_CODES_OF_CHANGES, *ERRORS, "speaker_opted_out", "consent_required")),
    ),
    "openapi_extra": AUDIO_BODY,
}

Id = Annotated[str, Path(description="1 to 128 of A-Z, a-z, 0-9, `.`, `_` and `-`.")]
Domain = Annotated[str | None, Query(description="Another domain than the key's own; for `admin`.")]
Adapter = Annotated[str, Query(description="`name`, `name@2` or `name@alias`, of speaker verification.")]
Named = Annotated[str | None, Query(description="The adapter whose status is wanted; all of them without it.")]
Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="A retry with it is answered as the first try was, for a week."),
]


@router.put("/v1/speakers/{speaker}", openapi_extra=SPEAKER_BODY, response_model=shown.SpeakerInfo, **_CHANGE)
async def put_speaker(request: Request, speaker: Id, domain: Domain = None, key: Key = None) -> Response:
    """Makes a speaker, or sets the consent and how long voiceprints are kept; what the body leaves out stays."""
    async with visiting(request, domain, speaker) as visit:
        body = await read_body(request, MAX_PARSED_BYTES, visit.admission.reservation)
        fields = parse_json(body, shown.SpeakerRequest).fields(visit.store.now()) if body else {}
        attempt = Attempt.of(key, b"put", speaker.encode(), body)
        return _told(
            await visit.change(
                lambda deadline: visit.store.put(visit.by, speaker, fields, visit.tell, Terms(deadline, attempt))
            )
        )


@router.get("/v1/speakers", response_model=shown.SpeakerList, **_READ)
async def list_speakers(
    request: Request,
    status: Annotated[Status | None, Query(description="Only those who stand so.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Speakers in one answer.")] = 100,
    after: Annotated[
        str, Query(max_length=128, pattern=r"^[^\x00]*$", description="`next` of the answer before.")
    ] = "",
    adapter: Named = None,
    domain: Domain = None,
) -> Response:
    """The speakers of a domain, by id; those who only opted out too."""
    async with visiting(request, domain) as visit:
        version = None if adapter is None else visit.resolve(adapter)

        def page() -> shown.SpeakerList:
            found: list[shown.SpeakerInfo] = []
            for one in visit.store.walk(visit.by.domain, after):
                told = visit.info(one, version)
                if status in (None, told.status):
                    if len(found) == limit:
                        return shown.SpeakerList(speakers=found, next=found[-1].speaker)
                    found.append(told)
            return shown.SpeakerList(speakers=found)

        return _json(await visit.run(lambda: page().model_dump_json()))


@router.get("/v1/speakers/{speaker}", response_model=shown.SpeakerInfo, **_READ)
async def get_speaker(request: Request, speaker: Id, adapter: Named = None, domain: Domain = None) -> Response:
    """One speaker: consent, status and enrolments, without the vectors."""
    async with visiting(request, domain, speaker) as visit:
        version = None if adapter is None else visit.resolve(adapter)
        found = await visit.run(visit.store.find, visit.by.domain, speaker)
        return _json(visit.info(found, version).model_dump_json())


@router.get("/v1/speakers/{speaker}/export", response_model=shown.SpeakerExport, **_READ)
async def export_speaker(request: Request, speaker: Id, domain: Domain = None) -> Response:
    """All that is stored of a person: consent, enrolments with their vectors, and who used them when."""
    async with visiting(request, domain, speaker) as visit:
        return _json(await visit.run(lambda: shown.export(*visit.store.export(visit.by, speaker)).model_dump_json()))


@router.delete("/v1/speakers/{speaker}", status_code=204, **_CHANGE)
async def delete_speaker(request: Request, speaker: Id, domain: Domain = None, key: Key = None) -> Response:
    """Removes everything of a person for good, but that they have opted out."""
    async with visiting(request, domain, speaker) as visit:
        terms = Terms(attempt=Attempt.of(key, b"delete", speaker.encode()))
        return _told(
            await visit.change(
                lambda deadline: visit.store.delete(visit.by, speaker, replace(terms, deadline=deadline))
            ),
            204,
        )


@router.delete("/v1/speakers/{speaker}/enrolments/{enrolment}", status_code=204, **_CHANGE)
async def delete_enrolment(
    request: Request,
    speaker: Id,
    enrolment: Annotated[int, Path(ge=1, le=2**31 - 1)],
    domain: Domain = None,
    key: Key = None,
) -> Response:
    """Removes one enrolment for good."""
    async with visiting(request, domain, speaker) as visit:
        terms = Terms(attempt=Attempt.of(key, b"delete", speaker.encode(), str(enrolment).encode()))
        return _told(
            await visit.change(
                lambda deadline: visit.store.delete_enrolment(
                    visit.by, speaker, enrolment, replace(terms, deadline=deadline)
                )
            ),
            204,
        )


@router.post("/v1/speakers/{speaker}/opt-out", response_model=shown.SpeakerInfo, **_CHANGE)
async def opt_out(request: Request, speaker: Id, domain: Domain = None, key: Key = None) -> Response:
    """Removes a person's voiceprints and takes no more of them; also of an id that is not known."""
    return await _opt(request, speaker, domain, SpeakerStore.opt_out, Attempt.of(key, b"opt-out", speaker.encode()))


@router.post("/v1/speakers/{speaker}/opt-in", response_model=shown.SpeakerInfo, **_CHANGE)
async def opt_in(request: Request, speaker: Id, domain: Domain = None, key: Key = None) -> Response:
    """Lifts an opt-out; the person has to be enrolled anew."""
    return await _opt(request, speaker, domain, SpeakerStore.opt_in, Attempt.of(key, b"opt-in", speaker.encode()))


@router.post("/v1/speakers/{speaker}/enrolments", status_code=201, response_model=shown.EnrolAnswer, **_LISTEN)
async def enrol_speaker(
    request: Request, speaker: Id, adapter: Adapter, domain: Domain = None, key: Key = None
) -> Response:
    """Adds clips to a speaker's voiceprint; the first one makes the speaker."""
    async with visiting(request, domain, speaker) as visit:
        version, store = visit.resolve(adapter), visit.store
        needs_consent = visit.admission.context.settings.require_consent
        async with visit.admission.runtime.engine.admit([version]) as place:
            encoded = await read_clips(visit.admission)
            attempt = Attempt.of(key, b"enrol", speaker.encode(), adapter.encode(), *encoded)
            if (known := await visit.run(store.recall, visit.by, attempt)) is not None:
                return _told(known, 201)
            check_may_enrol(await visit.run(store.look, visit.by.domain, speaker), needs_consent)
            number = await visit.run(store.number, visit.by.domain, speaker)
            voice = shown.voice_of(version)

            async def work() -> Told:
                clips = await visit.listen(place, encoded)

                def tell(after: Speaker, added: list[Enrolment | None]) -> str:
                    told = [_enrolled(clip, one) for clip, one in zip(clips, added, strict=True)]
                    return shown.enrolled(after, voice, told, store.now()).model_dump_json()

                told: Told = await visit.change(
                    lambda deadline: store.enrol(
                        visit.by,
                        speaker,
                        voice,
                        clips,
                        tell,
                        number=number,
                        needs_consent=needs_consent,
                        terms=Terms(deadline, attempt),
                    )
                )
                return told

            return _told(await while_connected(request, work()), 201)


@router.post("/v1/speakers/{speaker}/verify", response_model=shown.VerifyAnswer, **_LISTEN)
async def verify_speaker(
    request: Request,
    speaker: Id,
    adapter: Adapter,
    threshold: Annotated[
        str | None, Query(max_length=64, description="A name of the manifest's `thresholds`, or a cosine.")
    ] = None,
    prior: Annotated[
        float | None, Query(gt=0, lt=1, description="How likely it is the speaker before anything is heard.")
    ] = None,
    domain: Domain = None,
) -> Response:
    """Whether a voice is the speaker's. Who cannot be verified now is told without listening."""
    async with visiting(request, domain, speaker) as visit:
        version, store = visit.resolve(adapter), visit.store
        judge, voice = verifying.threshold_of(version.manifest, threshold), shown.voice_of(version)
        if prior is not None and version.manifest.calibration is None:
            raise InvalidRequest(f"{version.reference} has no calibration, so a prior makes no probability")
        async with visit.admission.runtime.engine.admit([version]) as place:
            encoded = await read_clips(visit.admission)

            async def work() -> str:
                found = await visit.run(store.look, visit.by.domain, speaker)
                clips: Sequence[Spoken] = ()
                if verifying.standing(found, voice, store.now()) is None:
                    clips = await visit.listen(place, encoded)
                seconds = sum(clip.speech_seconds for clip in clips)

                def decide(now: Speaker, references: list[Reference]) -> tuple[Verdict, str]:
                    reason = verifying.standing(now, voice, store.now())
                    if reason is None and clips:
                        test = mean_of([clip.vector for clip in clips if clip.speech_seconds > 0 or not seconds])
                        verdict = verifying.compare(version.manifest, references, test, seconds, judge)
                    else:
                        verdict = Verdict(reason or "speaker_not_enrolled")
                    return verdict, verdict.decision

                verdict = await visit.change(lambda deadline: store.judge(visit.by, speaker, voice, decide, deadline))
                return _verified(speaker, version, judge, verdict, clips, prior)

            return json_answer((await while_connected(request, work())).encode())


@router.post("/v1/speakers/identify", response_model=shown.IdentifyAnswer, **_LISTEN)
async def identify_speaker(
    request: Request,
    adapter: Adapter,
    among: Annotated[
        list[str], Query(max_length=100, description="Only these; then the scope `identify` is not needed.")
    ] = [],  # noqa: B006  FastAPI copies it
    top_k: Annotated[int, Query(ge=1, le=100, description="Candidates to answer.")] = 5,
    domain: Domain = None,
) -> Response:
    """Whose voice it is, of everybody who is enrolled in the domain: most often of none, `unknown`."""
    async with visiting(request, domain) as visit:
        if not among:
            caller_of(request).require_scope(Scope.IDENTIFY)
        only = [require_speaker(one) for one in among] or None
        version, runtime = visit.resolve(adapter), visit.admission.runtime
        verifying.identification_threshold(version.manifest, 1)  # refused before anything is heard
        voice, merge = shown.voice_of(version), version.manifest.merge or "mean"
        async with runtime.engine.admit([version]) as place:
            encoded = await read_clips(visit.admission)
            if len(encoded) != 1:
                raise InvalidRequest(f"one clip is identified at a time, got {len(encoded)}")

            async def work() -> str:
                (clip,) = await visit.listen(place, encoded)
                found = None
                if clip.speech_seconds >= version.manifest.speech_needed.verify_seconds:
                    # Second best is asked for in any case: the margin is over it.
                    found = await visit.run(
                        lambda: runtime.galleries.of(visit.by.domain, voice, merge).search(
                            clip.vector, max(2, top_k), visit.store.now(), only
                        )
                    )
                answer = shown.identification(version, found, clip.speech_seconds, clip.warnings)
                best = found.candidates[0][:2] if found and answer.decision == "identified" else None
                await visit.change(
                    lambda deadline: visit.store.identified(visit.by, best, voice, answer.decision, deadline)
                )
                return answer.model_copy(update={"candidates": answer.candidates[:top_k]}).model_dump_json()

            return json_answer((await while_connected(request, work())).encode())


async def _opt(
    request: Request,
    speaker: str,
    domain: str | None,
    change: Callable[[SpeakerStore, By, str, Callable[[Speaker], str], Terms], Told],
    attempt: Attempt | None,
) -> Response:
    async with visiting(request, domain, speaker) as visit:
        return _told(
            await visit.change(
                lambda deadline: change(visit.store, visit.by, speaker, visit.tell, Terms(deadline, attempt))
            )
        )


def _enrolled(clip: Spoken, enrolment: Enrolment | None) -> shown.Enrolled:
    number = None if enrolment is None else enrolment.id
    return shown.Enrolled(id=number, speech_seconds=clip.speech_seconds, warnings=list(clip.warnings))


def _verified(
    speaker: str,
    version: AdapterVersion,
    threshold: Threshold,
    verdict: Verdict,
    clips: Sequence[Spoken],
    prior: float | None,
) -> str:
    ratio = verdict.log_likelihood_ratio
    probability = None if ratio is None or prior is None else verifying.probability(ratio, prior)
    answer = shown.VerifyAnswer(
        speaker=speaker,
        adapter=version.name,
        version=version.version,
        digest=version.digest,
        decision=verdict.decision,
        score=verdict.score,
        threshold=threshold.value,
        threshold_name=threshold.name,
        log_likelihood_ratio=ratio,
        probability=probability,
        speech_seconds=round(sum(clip.speech_seconds for clip in clips), 6) if clips else None,
        warnings=list(dict.fromkeys(word for clip in clips for word in clip.warnings)),
    )
    return answer.model_dump_json(exclude={"probability"} if prior is None else None)


def _told(told: Told, status: int = 200) -> Response:
    headers = {"Idempotency-Replayed": "true"} if told.replayed else {}
    if status == 204:
        return Response(status_code=status, headers=headers)
    return Response(told.answer, status, headers, media_type="application/json")


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")
