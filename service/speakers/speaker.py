"""What a speaker is: an id in a domain, a consent, enrolments by adapter, and the status that follows from them."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from service.errors import InvalidRequest
from service.speakers.vault import Vector

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
RESERVED: Final = frozenset({"identify", "jobs"})  # paths beside the ids


class Status(StrEnum):
    """Where a speaker stands, for one adapter."""

    PENDING = "pending"  # not enough speech yet, or none
    ENROLLED = "enrolled"
    STALE = "stale"  # enrolled by another version of the adapter only
    EXPIRED = "expired"  # not used for as long as the voiceprints may be kept
    OPTED_OUT = "opted_out"


@dataclass(frozen=True, slots=True)
class Consent:
    """What the person agreed to: who took it down, when, in which words."""

    by: str
    at: datetime
    text: str


@dataclass(frozen=True, slots=True)
class Voice:
    """An adapter's version, as far as speakers are concerned: a voiceprint belongs to its digest.

    Args:
        enrol_seconds: of speech that make a speaker enrolled.
        dimension: of its embeddings.
    """

    adapter: str
    version: int
    digest: str
    enrol_seconds: float
    dimension: int


class Spoken(NamedTuple):
    """One clip of somebody, embedded."""

    vector: Vector
    speech_seconds: float
    warnings: tuple[str, ...]


class Reference(NamedTuple):
    """What a voice is compared with."""

    vector: Vector
    speech_seconds: float


@dataclass(frozen=True, slots=True)
class Enrolment:
    """One clip of a speaker.

    Args:
        id: the speaker's own numbers, from 1, never used again.
        needed_seconds: of speech by this version, together, that make a speaker enrolled.
    """

    id: int
    adapter: str
    version: int
    digest: str
    speech_seconds: float
    needed_seconds: float
    warnings: tuple[str, ...]
    created: datetime


@dataclass(frozen=True, slots=True)
class Speaker:
    """All that is known of one person, but for the vectors.

    Args:
        created: None where nothing but an opt-out is kept.
        used: when the voiceprints were last added to, or verified or identified against.
        lifetime: how long they are kept after that; None is for ever.
        expired: when they were removed for that; None where they were not enough for anything yet.
    """

    domain: str
    id: str
    created: datetime | None = None
    used: datetime | None = None
    lifetime: timedelta | None = None
    expired: datetime | None = None
    opted_out: datetime | None = None
    consent: Consent | None = None
    enrolments: tuple[Enrolment, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether anything is stored of them."""
        return self.created is not None or self.opted_out is not None

    @property
    def expires(self) -> datetime | None:
        """When the voiceprints go, unless they are used before."""
        return None if self.lifetime is None or self.used is None else self.used + self.lifetime

    def of(self, digest: str) -> list[Enrolment]:
        """The enrolments by one version of an adapter."""
        return [enrolment for enrolment in self.enrolments if enrolment.digest == digest]

    def speech_seconds(self, digest: str) -> float:
        """How long they speak, together."""
        return sum(enrolment.speech_seconds for enrolment in self.of(digest))

    def had_enough(self, digest: str) -> bool:
        """Whether the enrolments by one version are as much speech as it needs."""
        return self.speech_seconds(digest) >= max(one.needed_seconds for one in self.of(digest))

    def has_lost(self, after: "Speaker") -> bool:
        """Whether a voiceprint or the words of a consent are gone in what came `after`."""
        is_changed = self.consent is not None and self.consent != after.consent
        return is_changed or not {one.id for one in self.enrolments} <= {one.id for one in after.enrolments}

    def has_expired(self, now: datetime) -> bool:
        """Whether the voiceprints may not be kept any longer, or were removed for that."""
        due = self.expires is not None and self.expires <= now and bool(self.enrolments)
        return due or self.expired is not None

    def status(self, voice: Voice, now: datetime) -> Status:
        """Of this version of an adapter. Who never had enough speech for it is pending, not stale or expired."""
        if self.opted_out is not None:
            return Status.OPTED_OUT
        if self.expired is not None:
            return Status.EXPIRED
        digests = {one.digest for one in self.enrolments if one.adapter == voice.adapter}
        if voice.digest in digests:
            enough = self.speech_seconds(voice.digest) >= voice.enrol_seconds
            found = Status.ENROLLED if enough else Status.PENDING
        else:
            found = Status.STALE if any(map(self.had_enough, digests)) else Status.PENDING
        return Status.EXPIRED if found is not Status.PENDING and self.has_expired(now) else found


def require_speaker(text: str) -> str:
    """A speaker's id. Raises InvalidRequest for what cannot be one."""
    if not _ID.fullmatch(text) or text in RESERVED:
        raise InvalidRequest(
            f"{text[:80]!a} is no speaker's id: 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', beginning with a letter "
            f"or digit, and neither of {', '.join(sorted(RESERVED))}"
        )
    return text
