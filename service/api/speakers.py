"""Speakers as the API shows them, and what callers send of them. Knows no routes."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.access.keys import Grant, parse_lifetime
from service.api.context import Runtime
from service.api.schemas import Answer
from service.errors import ServiceError
from service.registry.store import AdapterVersion
from service.speakers.gallery import Found
from service.speakers.journal import Use
from service.speakers.speaker import Consent, Enrolment, Speaker, Status, Voice
from service.speakers.vault import Vector
from service.speakers.verifying import Decision, identification_threshold, ratio_of

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class ConsentRequest(BaseModel):
    """What the person agreed to."""

    model_config = ConfigDict(extra="forbid")

    by: Text = Field(min_length=1, max_length=256, description="Who took it down.")
    at: datetime | None = Field(None, description="When; now without it, UTC without a zone.")
    text: Text = Field("", max_length=2**14, description="In which words.")


class SpeakerRequest(BaseModel):
    """What to set of a speaker; what is left out stays, null removes it."""

    model_config = ConfigDict(extra="forbid")

    consent: ConsentRequest | None = None
    expires: str | None = Field(
        None, max_length=32, description="How long voiceprints are kept after their last use: 12h, 30d, 52w."
    )

    def fields(self, now: datetime) -> dict[str, Consent | timedelta | None]:
        """What was sent, as the store takes it. Raises InvalidRequest."""
        found: dict[str, Consent | timedelta | None] = {}
        if "consent" in self.model_fields_set:
            given = self.consent
            found["consent"] = None if given is None else Consent(given.by, _utc(given.at or now), given.text)
        if "expires" in self.model_fields_set:
            found["lifetime"] = None if self.expires is None else parse_lifetime(self.expires)
        return found


class EnrolmentInfo(Answer):
    id: int
    version: int = Field(description="Of the adapter.")
    digest: str
    speech_seconds: float
    warnings: list[str]
    created: datetime


class Standing(Answer):
    """Where a speaker stands with one adapter."""

    adapter: str
    version: int | None = Field(description="The live one; null where the adapter is gone.")
    digest: str | None
    status: Status
    speech_seconds: float = Field(description="Of the enrolments by this version.")
    needed_seconds: float | None
    progress: float = Field(description="0 to 1: how much of the speech that is needed is there.")
    enrolments: list[EnrolmentInfo] = Field(description="By any version of the adapter.")


class ConsentInfo(Answer):
    by: str
    at: datetime
    text: str


class SpeakerInfo(Answer):
    speaker: str
    status: Status = Field(description="For the adapter asked for; without one the best of all adapters'.")
    created: datetime | None = Field(description="Null where nothing but an opt-out is kept.")
    used: datetime | None = Field(description="When the voiceprints were last added to or verified against.")
    expires: datetime | None = Field(description="When the voiceprints go unless they are used before; null: never.")
    opted_out: datetime | None
    consent: ConsentInfo | None
    adapters: list[Standing]


class SpeakerList(Answer):
    speakers: list[SpeakerInfo]
    next: str | None = None


class ExportedEnrolment(EnrolmentInfo):
    adapter: str
    embedding: list[float]


class UseInfo(Answer):
    at: datetime
    actor: str = Field(description="Id of the key; `server` for what expired.")
    action: str
    adapter: str | None
    version: int | None
    outcome: str | None


class SpeakerExport(Answer):
    """All that is stored of a person."""

    domain: str
    speaker: str
    created: datetime | None
    used: datetime | None
    expires: datetime | None
    opted_out: datetime | None
    consent: ConsentInfo | None
    enrolments: list[ExportedEnrolment]
    uses: list[UseInfo] = Field(description="Who did what with these data, as long as that is kept; oldest first.")


class Enrolled(Answer):
    id: int | None = Field(description="Null of a clip without speech, which is not stored.")
    speech_seconds: float
    warnings: list[str]


class EnrolAnswer(Answer):
    speaker: str
    adapter: str
    version: int
    enrolments: list[Enrolled] = Field(description="Of the clips sent, in their order.")
    speech_seconds: float = Field(description="Of all enrolments by this version.")
    needed_seconds: float
    progress: float = Field(description="0 to 1.")
    status: Status


class VerifyAnswer(Answer):
    speaker: str
    adapter: str
    version: int
    digest: str
    decision: Decision
    score: float | None = Field(description="Cosine; null where the voice was not compared.")
    threshold: float
    threshold_name: str | None = Field(description="`default`, a name of the manifest, or null for a number.")
    log_likelihood_ratio: float | None = Field(description="Natural logarithm; null where the adapter has none.")
    probability: float | None = Field(None, description="Where a `prior` was given.")
    speech_seconds: float | None = Field(description="Null where the decision was made without listening.")
    warnings: list[str]


class Candidate(Answer):
    speaker: str
    score: float = Field(description="Cosine.")
    log_likelihood_ratio: float | None


class IdentifyAnswer(Answer):
    adapter: str
    version: int
    digest: str
    decision: Literal["identified", "unknown", "not_enough_speech"]
    candidates: list[Candidate] = Field(description="Best first, whatever the decision; none without enough speech.")
    margin: float | None = Field(description="Of the best score over the second best; null without a second.")
    threshold: float = Field(description="Of the best cosine, for the number searched.")
    threshold_name: str
    searched: int = Field(description="Speakers that the voice was compared with.")
    extrapolated: bool = Field(description="Whether the threshold is a bound of the calibration, not a measured rate.")
    speech_seconds: float
    warnings: list[str]


def identification(
    version: AdapterVersion, found: Found | None, seconds: float, warnings: Sequence[str]
) -> IdentifyAnswer:
    """What came of a search; `found` None where too little was heard to search."""
    searched = 0 if found is None else found.searched
    threshold = identification_threshold(version.manifest, searched)
    scores = [] if found is None else [score for _, _, score in found.candidates]
    decision: Literal["identified", "unknown", "not_enough_speech"] = "unknown"
    if found is None:
        decision = "not_enough_speech"
    elif scores and scores[0] >= threshold.value:
        decision = "identified"
    return IdentifyAnswer(
        adapter=version.name,
        version=version.version,
        digest=version.digest,
        decision=decision,
        candidates=[
            Candidate(speaker=one, score=score, log_likelihood_ratio=ratio_of(version.manifest, score))
            for _, one, score in (found.candidates if found else ())
        ],
        margin=scores[0] - scores[1] if len(scores) > 1 else None,
        threshold=threshold.value,
        threshold_name=threshold.name or "",
        searched=searched,
        extrapolated=True,
        speech_seconds=round(seconds, 6),
        warnings=list(warnings),
    )


def voice_of(version: AdapterVersion) -> Voice:
    """What speakers need to know of an adapter's version."""
    manifest = version.manifest
    needed = manifest.speech_needed.enrol_seconds
    return Voice(version.name, version.version, version.digest, needed, manifest.embedding_dim or 0)


def info(runtime: Runtime, grant: Grant, speaker: Speaker, now: datetime, voice: Voice | None = None) -> SpeakerInfo:
    """A speaker, with where they stand with one adapter, or with each that the caller's key is bound to."""
    names = {enrolment.adapter for enrolment in speaker.enrolments if grant.covers(enrolment.adapter)}
    standings = (
        [_standing(speaker, name, _live(runtime, name), now) for name in sorted(names)]
        if voice is None
        else [_standing(speaker, voice.adapter, voice, now)]
    )
    return SpeakerInfo(
        speaker=speaker.id,
        status=_overall(speaker, standings, now),
        created=speaker.created,
        used=speaker.used,
        expires=speaker.expires,
        opted_out=speaker.opted_out,
        consent=_consent(speaker),
        adapters=standings,
    )


def enrolled(speaker: Speaker, voice: Voice, clips: Sequence[Enrolled], now: datetime) -> EnrolAnswer:
    seconds = speaker.speech_seconds(voice.digest)
    return EnrolAnswer(
        speaker=speaker.id,
        adapter=voice.adapter,
        version=voice.version,
        enrolments=list(clips),
        speech_seconds=round(seconds, 6),
        needed_seconds=voice.enrol_seconds,
        progress=_progress(seconds, voice.enrol_seconds),
        status=speaker.status(voice, now),
    )


def export(speaker: Speaker, vectors: dict[int, Vector], uses: Sequence[Use]) -> SpeakerExport:
    """Everything of a person."""
    return SpeakerExport(
        domain=speaker.domain,
        speaker=speaker.id,
        created=speaker.created,
        used=speaker.used,
        expires=speaker.expires,
        opted_out=speaker.opted_out,
        consent=_consent(speaker),
        enrolments=[
            ExportedEnrolment(adapter=one.adapter, embedding=vectors[one.id].tolist(), **_enrolment(one).model_dump())
            for one in speaker.enrolments
        ],
        uses=[
            UseInfo(
                at=use.at,
                actor=use.actor,
                action=use.action,
                adapter=use.adapter,
                version=use.version,
                outcome=use.outcome,
            )
            for use in uses
        ],
    )


def _overall(speaker: Speaker, standings: Sequence[Standing], now: datetime) -> Status:
    """The furthest that the speaker has come with any adapter."""
    if speaker.opted_out is not None:
        return Status.OPTED_OUT
    if speaker.has_expired(now):
        return Status.EXPIRED
    found = {standing.status for standing in standings}
    return next((one for one in (Status.ENROLLED, Status.STALE) if one in found), Status.PENDING)


def _standing(speaker: Speaker, adapter: str, voice: Voice | None, now: datetime) -> Standing:
    enrolments = [_enrolment(one) for one in speaker.enrolments if one.adapter == adapter]
    if voice is None:
        status = _overall(speaker, (), now)
        return Standing(
            adapter=adapter,
            version=None,
            digest=None,
            status=Status.STALE if status is Status.PENDING else status,
            speech_seconds=0.0,
            needed_seconds=None,
            progress=0.0,
            enrolments=enrolments,
        )
    seconds = speaker.speech_seconds(voice.digest)
    return Standing(
        adapter=adapter,
        version=voice.version,
        digest=voice.digest,
        status=speaker.status(voice, now),
        speech_seconds=round(seconds, 6),
        needed_seconds=voice.enrol_seconds,
        progress=_progress(seconds, voice.enrol_seconds),
        enrolments=enrolments,
    )


def _progress(seconds: float, needed: float) -> float:
    return 1.0 if seconds >= needed else round(seconds / needed, 6)


def _live(runtime: Runtime, adapter: str) -> Voice | None:
    try:
        return voice_of(runtime.registry.resolve(adapter))
    except ServiceError:  # deleted, or not fit for this backbone: no voiceprint can be of it now
        return None


def _enrolment(enrolment: Enrolment) -> EnrolmentInfo:
    return EnrolmentInfo(
        id=enrolment.id,
        version=enrolment.version,
        digest=enrolment.digest,
        speech_seconds=enrolment.speech_seconds,
        warnings=list(enrolment.warnings),
        created=enrolment.created,
    )


def _consent(speaker: Speaker) -> ConsentInfo | None:
    given = speaker.consent
    return None if given is None else ConsentInfo(by=given.by, at=given.at, text=given.text)


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
