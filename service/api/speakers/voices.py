"""Voices of speakers: enrolment, verification of one, identification of one among many."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from service.access.keys import Scope
from service.api.auth import SPEAKERS, asks
from service.api.call import Call
from service.api.inference.asking import ERRORS, cohort_of, infer, json_answer, read_clips, resolve, scores
from service.api.openapi import AUDIO_BODY
from service.api.speakers.people import CHANGE_CODES, Adapter, Domain, Id, Key, progress, told, visiting, voice_of
from service.attempts import Attempt
from service.engine.engine import Outputs, Place
from service.engine.job import Values
from service.engine.prepare import Clip
from service.errors import AdapterFailed, InvalidRequest
from service.model.spec import TaskType
from service.registry.sections import Check
from service.registry.store import AdapterVersion
from service.scoring.cohort import Cohort
from service.scoring.score import enrol as mean_of
from service.scoring.score import voiceprint
from service.speakers import verifying
from service.speakers.gallery import Found
from service.speakers.speaker import Enrolment, Reference, Speaker, Spoken, Status, Voice, require_speaker
from service.speakers.store import Terms, Told, check_may_enrol
from service.speakers.verifying import Decision, Threshold, Verdict, identification_threshold, ratio_of

router: Final = APIRouter(tags=["speakers"])

_LISTEN: Final = asks(SPEAKERS, *CHANGE_CODES, *ERRORS, "speaker_opted_out", "consent_required") | {
    "openapi_extra": AUDIO_BODY
}


class Enrolled(BaseModel):
    id: int | None = Field(description="Null of a clip without speech, which is not stored.")
    speech_seconds: float
    warnings: list[str]


class EnrolAnswer(BaseModel):
    speaker: str
    adapter: str
    version: int
    enrolments: list[Enrolled] = Field(description="Of the clips sent, in their order.")
    speech_seconds: float = Field(description="Of all enrolments by this version.")
    needed_seconds: float
    progress: float = Field(description="0 to 1.")
    status: Status


class Checked(BaseModel):
    """What another classifier said of the voice."""

    adapter: str
    version: int
    label: str
    score: float


class VerifyAnswer(BaseModel):
    speaker: str
    adapter: str
    version: int
    digest: str
    decision: Decision
    score: float | None = Field(description="Cosine; null where the voice was not compared.")
    normalised_score: float | None = Field(None, description="Beside it, where the adapter has `normalisation`.")
    threshold: float
    threshold_name: str | None = Field(description="`default`, a name of the manifest, or null for a number.")
    log_likelihood_ratio: float | None = Field(description="Natural logarithm; null where the adapter has none.")
    probability: float | None = Field(None, description="Where a `prior` was given.")
    speech_seconds: float | None = Field(description="Null where the decision was made without listening.")
    warnings: list[str]
    reason: str | None = Field(None, description="The check that rejected the voice, where the adapter has some.")
    checks: list[Checked] = Field([], description="What they found.")


class Candidate(BaseModel):
    speaker: str
    score: float = Field(description="Cosine.")
    log_likelihood_ratio: float | None


class IdentifyAnswer(BaseModel):
    adapter: str
    version: int
    digest: str
    decision: Literal["identified", "unknown", "not_enough_speech"]
    candidates: list[Candidate] = Field(description="Best first, whatever the decision; none without enough speech.")
    margin: float | None = Field(description="Of the best score over the second best; null without a second.")
    threshold: float = Field(description="Of the best cosine, for the number searched.")
    threshold_name: str
    searched: int = Field(description="Speakers that the voice was compared with.")
    extrapolated: bool = Field(description="Whether the threshold is reckoned beyond what the cohort measures.")
    speech_seconds: float
    warnings: list[str] = Field(description="Of the clip; `threshold_unreachable`: nobody can be identified.")
    reason: str | None = Field(None, description="The check that rejected the voice, where the adapter has some.")
    checks: list[Checked] = Field([], description="What they found.")


@router.post("/v1/speakers/{speaker}/enrolments", status_code=201, response_model=EnrolAnswer, **_LISTEN)
async def enrol_speaker(call: Call, speaker: Id, adapter: Adapter, domain: Domain = None, key: Key = None) -> Response:
    """Adds clips to a speaker's voiceprint; the first one makes the speaker."""
    with visiting(call, domain, speaker) as visit:
        version, store = visit.resolve(adapter), visit.store
        needs_consent, voice = call.context.settings.require_consent, voice_of(version)
        async with call.runtime.engine.admit([version]) as place:
            removals = await visit.run(store.removals, visit.by.domain, speaker)
            encoded = await read_clips(call)
            attempt = Attempt.of(key, b"enrol", speaker.encode(), adapter.encode(), *encoded)
            if (known := await visit.run(store.recall, visit.by, attempt)) is not None:
                return told(known, 201)
            check_may_enrol(await visit.run(store.look, visit.by.domain, speaker), needs_consent)
            clips, _ = await _listen(call, place, encoded)

            def tell(after: Speaker, added: list[Enrolment | None]) -> str:
                return enrolled(after, voice, clips, added, store.now()).model_dump_json()

            def enrol(terms: Terms) -> Told:
                return store.enrol(
                    visit.by, speaker, voice, clips, tell, removals=removals, needs_consent=needs_consent, terms=terms
                )

            with call.while_connected():
                return await visit.answer(enrol, attempt, 201)


@router.post("/v1/speakers/{speaker}/verify", response_model=VerifyAnswer, **_LISTEN)
async def verify_speaker(
    call: Call,
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
    with visiting(call, domain, speaker) as visit:
        version, store = visit.resolve(adapter), visit.store
        judge, voice = verifying.threshold_of(version.manifest, threshold), voice_of(version)
        checkers, cohort = _checkers(call, version), await cohort_of(call, version)
        if prior is not None and verifying.calibration_for(version.manifest, judge) is None:
            raise InvalidRequest(f"{version.reference} has no calibration, so a prior makes no probability")
        async with call.runtime.engine.admit([version, *checkers]) as place:
            encoded = await read_clips(call)
            found = await visit.run(store.look, visit.by.domain, speaker)
            clips, checks = list[Spoken](), list[Checked]()
            if verifying.standing(found, voice, store.now()) is None:
                clips, checks = await _listen(call, place, encoded)
            rejected = _rejection(version, checks)
            seconds = sum(clip.speech_seconds for clip in clips)

            def decide(now: Speaker, references: list[Reference]) -> tuple[Verdict, str]:
                reason = verifying.standing(now, voice, store.now())
                if reason is None and clips:
                    test = mean_of([clip.vector for clip in clips if clip.speech_seconds > 0 or not seconds])
                    verdict = verifying.compare(version.manifest, cohort, references, test, seconds, judge, rejected)
                else:
                    verdict = Verdict(reason or "speaker_not_enrolled")
                return verdict, verdict.decision

            with call.while_connected():
                verdict = await visit.change(lambda deadline: store.judge(visit.by, speaker, voice, decide, deadline))
            return json_answer(_verified(speaker, version, judge, verdict, clips, checks, prior))


@router.post("/v1/speakers/identify", response_model=IdentifyAnswer, **_LISTEN)
async def identify_speaker(
    call: Call,
    adapter: Adapter,
    among: Annotated[
        list[str], Query(max_length=100, description="Only these; then the scope `identify` is not needed.")
    ] = [],  # noqa: B006  FastAPI copies it
    top_k: Annotated[int, Query(ge=1, le=100, description="Candidates to answer.")] = 5,
    domain: Domain = None,
) -> Response:
    """Whose voice it is, of everybody who is enrolled in the domain: most often of none, `unknown`."""
    with visiting(call, domain) as visit:
        if not among:
            call.caller.require_scope(Scope.IDENTIFY)
        only = [require_speaker(one) for one in among] or None
        version, runtime = visit.resolve(adapter), call.runtime
        checkers, cohort = _checkers(call, version), await cohort_of(call, version)
        # Refused before anything is heard; and it takes a while the first time.
        await visit.run(verifying.identification_threshold, version.manifest, 1, cohort)
        voice, merge = voice_of(version), version.manifest.merge or "mean"
        async with runtime.engine.admit([version, *checkers]) as place:
            encoded = await read_clips(call)
            if len(encoded) != 1:
                raise InvalidRequest(f"one clip is identified at a time, got {len(encoded)}")

            (clip,), checks = await _listen(call, place, encoded)
            found = None
            if clip.speech_seconds >= version.manifest.speech_needed.verify_seconds:
                # Second best is asked for in any case: the margin is over it.
                found = await visit.run(
                    lambda: runtime.galleries.of(visit.by.domain, voice, merge).search(
                        clip.vector, max(2, top_k), visit.store.now(), only
                    )
                )
            answer = _identified(version, cohort, found, clip, checks)
            best = found.candidates[0][:2] if found and answer.decision == "identified" else None
            with call.while_connected():
                await visit.change(
                    lambda deadline: visit.store.identified(visit.by, best, voice, answer.decision, deadline)
                )
            answer = answer.model_copy(update={"candidates": answer.candidates[:top_k]})
            return json_answer(answer.model_dump_json(exclude=_left_out(version)))


def _checkers(call: Call, version: AdapterVersion) -> list[AdapterVersion]:
    """The classifiers that hear a voice beside a speaker adapter, one for each of its `checks`.

    Raises:
        UnknownAdapter, UnknownVersion, WrongTask: one that cannot be asked.
        AdapterFailed: it does not have the label that is to reject.
    """
    checks = version.manifest.checks or ()
    found = resolve(call, [check.adapter for check in checks], TaskType.CLASSIFICATION)
    for check, checker in zip(checks, found, strict=True):
        if check.reject.label not in (checker.manifest.labels or ()):
            fault = f"{version.reference} checks for {check.reject.label!a}, no label of {checker.reference}"
            raise AdapterFailed(fault, adapter=check.adapter)
    return found


async def _listen(call: Call, place: Place, encoded: Sequence[bytes]) -> tuple[list[Spoken], list[Checked]]:
    """What the place's first adapter makes of clips, as /v1/embed has it, and what its checkers say."""
    clips, outputs = await infer(call, place, encoded)
    manifest = place.adapters[0].manifest

    def tell() -> tuple[list[Spoken], list[Checked]]:
        spoken = spoken_by(place.adapters[0], clips, [of_clip[0].finite() for of_clip in outputs])
        by_checker = list(zip(*outputs, strict=True))[1:]
        checks = manifest.checks or ()
        return spoken, [_checked(check, heard) for check, heard in zip(checks, by_checker, strict=False)]

    return await asyncio.to_thread(tell)


def spoken_by(version: AdapterVersion, clips: Sequence[Clip], windows: Sequence[Values]) -> list[Spoken]:
    """What a speaker adapter makes of the clips of somebody, by its embeddings `[W, embedding_dim]` of each."""
    heard = [clip.speech.windows for clip in clips if clip.speech]
    others = verifying.other_voices(windows, heard, version.manifest.calibration)
    return [_spoken(*one) for one in zip(clips, windows, others, strict=True)]


def _checked(check: Check, outputs: Sequence[Outputs]) -> Checked:
    """What a check's classifier said of all clips: the highest score of its label."""
    version = outputs[0].adapter
    at = (version.manifest.labels or ()).index(check.reject.label)
    score = max(float(scores(output)[at]) for output in outputs)
    return Checked(adapter=version.name, version=version.version, label=check.reject.label, score=score)


def _spoken(clip: Clip, windows: Values, has_other: bool) -> Spoken:
    seconds = clip.speech_seconds or 0.0
    warnings = (*clip.warnings, "several_voices") if has_other else clip.warnings
    return Spoken(voiceprint(windows), seconds, warnings if seconds else ("no_speech",))


def enrolled(
    speaker: Speaker, voice: Voice, clips: Sequence[Spoken], added: Sequence[Enrolment | None], now: datetime
) -> EnrolAnswer:
    """What is told of clips that were `added` to a speaker."""
    seconds = speaker.speech_seconds(voice.digest)
    return EnrolAnswer(
        speaker=speaker.id,
        adapter=voice.adapter,
        version=voice.version,
        enrolments=[
            Enrolled(
                id=None if one is None else one.id, speech_seconds=clip.speech_seconds, warnings=list(clip.warnings)
            )
            for clip, one in zip(clips, added, strict=True)
        ],
        speech_seconds=round(seconds, 6),
        needed_seconds=voice.enrol_seconds,
        progress=progress(seconds, voice.enrol_seconds),
        status=speaker.status(voice, now),
    )


def _identified(
    version: AdapterVersion, cohort: Cohort | None, found: Found | None, clip: Spoken, checks: Sequence[Checked]
) -> IdentifyAnswer:
    """What came of a search; `found` None where too little was heard to search."""
    searched = 0 if found is None else found.searched
    threshold, is_extrapolated = identification_threshold(version.manifest, searched, cohort)
    reason = None if found is None else _rejection(version, checks)
    warnings = [*clip.warnings, *([verifying.UNREACHABLE] if threshold.value > 1.0 else [])]
    scores = [] if found is None else [score for _, _, score in found.candidates]
    decision: Literal["identified", "unknown", "not_enough_speech"] = "unknown"
    if found is None:
        decision = "not_enough_speech"
    elif scores and scores[0] >= threshold.value and reason is None:
        decision = "identified"
    return IdentifyAnswer(
        adapter=version.name,
        version=version.version,
        digest=version.digest,
        decision=decision,
        candidates=[
            Candidate(speaker=one, score=score, log_likelihood_ratio=ratio_of(version.manifest.calibration, score))
            for _, one, score in (found.candidates if found else ())
        ],
        margin=scores[0] - scores[1] if len(scores) > 1 else None,
        threshold=threshold.value,
        threshold_name=threshold.name or "",
        searched=searched,
        extrapolated=is_extrapolated,
        speech_seconds=round(clip.speech_seconds, 6),
        warnings=warnings,
        reason=reason,
        checks=list(checks),
    )


def _rejection(version: AdapterVersion, checks: Sequence[Checked]) -> str | None:
    """The adapter of the first check that rejects a voice."""
    found = zip(version.manifest.checks or (), checks, strict=False)  # nothing was checked where nobody listened
    return next((check.adapter for check, heard in found if heard.score > check.reject.above), None)


def _left_out(version: AdapterVersion, *more: str) -> set[str]:
    """What an answer by this version does not have, beside `more`."""
    manifest = version.manifest
    return {*more, *(() if manifest.checks else ("reason", "checks"))} | (
        set() if manifest.normalisation else {"normalised_score"}
    )


def _verified(
    speaker: str,
    version: AdapterVersion,
    threshold: Threshold,
    verdict: Verdict,
    clips: Sequence[Spoken],
    checks: Sequence[Checked],
    prior: float | None,
) -> str:
    ratio = verdict.log_likelihood_ratio
    probability = None if ratio is None or prior is None else verifying.probability(ratio, prior)
    answer = VerifyAnswer(
        speaker=speaker,
        adapter=version.name,
        version=version.version,
        digest=version.digest,
        **asdict(verdict),
        threshold=threshold.value,
        threshold_name=threshold.name,
        probability=probability,
        speech_seconds=round(sum(clip.speech_seconds for clip in clips), 6) if clips else None,
        warnings=list(dict.fromkeys(word for clip in clips for word in clip.warnings)),
        checks=list(checks),
    )
    return answer.model_dump_json(exclude=_left_out(version, *(() if prior is not None else ("probability",))))
