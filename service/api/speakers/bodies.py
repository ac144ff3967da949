"""What is asked and told of speakers, as JSON."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.access.keys import parse_lifetime
from service.speakers.speaker import Consent, Status


def _utc(moment: datetime) -> datetime:
    """Raises ValueError for what is before the year 1 or after 9999 in UTC."""
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("not within the years 1 to 9999 of UTC") from error


Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class ConsentRequest(BaseModel):
    """What the person agreed to."""

    model_config = ConfigDict(extra="forbid")

    by: str = Field(pattern=r"^[^\x00]*[^\x00\s][^\x00]*$", max_length=256, description="Who took it down.")
    at: Annotated[datetime, AfterValidator(_utc)] | None = Field(
        None, description="When; now without it, UTC without a zone."
    )
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
            found["consent"] = None if given is None else Consent(given.by, given.at or now, given.text)
        if "expires" in self.model_fields_set:
            found["lifetime"] = None if self.expires is None else parse_lifetime(self.expires)
        return found


class Answer(BaseModel):
    """Base of what is told of speakers, which reads it from what is stored."""

    model_config = ConfigDict(from_attributes=True)


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


class Kept(Answer):
    """What is told of a speaker, whoever asks."""

    speaker: str
    created: datetime | None = Field(description="Null where nothing but an opt-out is kept.")
    used: datetime | None = Field(description="When the voiceprints were last added to or verified against.")
    expires: datetime | None = Field(description="When the voiceprints go unless they are used before; null: never.")
    opted_out: datetime | None
    consent: ConsentInfo | None


class SpeakerInfo(Kept):
    status: Status = Field(description="For the adapter asked for; without one the best of all adapters'.")
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


class SpeakerExport(Kept):
    """All that is stored of a person."""

    domain: str
    enrolments: list[ExportedEnrolment]
    uses: list[UseInfo] = Field(description="Who did what with these data, as long as that is kept; oldest first.")
