"""A store of speakers with a clock that tests move, and voices to put into it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from service.database import Database, open_database
from service.speakers.journal import By
from service.speakers.speaker import Enrolment, Speaker, Spoken, Voice
from service.speakers.store import SpeakerStore, Terms
from service.speakers.vault import KEY_BYTES, Vault

FIRST = Voice("voice", 1, "sha256:" + "1" * 64, enrol_seconds=3.0, dimension=8)
SECOND = Voice("voice", 2, "sha256:" + "2" * 64, enrol_seconds=3.0, dimension=8)
OTHER = Voice("other", 1, "sha256:" + "3" * 64, enrol_seconds=3.0, dimension=8)
ACME = By("acme", "somebody")
KEYS = (b"a" * KEY_BYTES, b"b" * KEY_BYTES)


@dataclass
class Clock:
    """Time that only tests move on."""

    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at

    def pass_by(self, **much: float) -> None:
        self.at += timedelta(**much)


@dataclass
class World:
    """One store; `again` opens what another process would."""

    database: Database
    clock: Clock = field(default_factory=Clock)
    keys: tuple[bytes, ...] = KEYS[:1]

    def __post_init__(self) -> None:
        self.store = self.again()

    def again(self, *keys: bytes) -> SpeakerStore:
        return SpeakerStore(self.database, Vault(keys or self.keys), self.clock)

    def enrol(
        self,
        speaker: str,
        *seconds: float,
        voice: Voice = FIRST,
        by: By = ACME,
        removals: frozenset[str] | None = None,
        terms: Terms | None = None,
        needs_consent: bool = False,
    ) -> Speaker:
        """Enrols a clip of a voice of the speaker's own for each of `seconds`."""
        clips = [Spoken(vector_of(speaker, at), length, ()) for at, length in enumerate(seconds)]
        found: list[Speaker] = []

        def tell(enrolled: Speaker, _: list[Enrolment | None]) -> str:
            found.append(enrolled)
            return f"{enrolled.id} {enrolled.speech_seconds(voice.digest):g}"

        if removals is None:
            removals = self.store.removals(by.domain, speaker)
        self.store.enrol(by, speaker, voice, clips, tell, removals=removals, needs_consent=needs_consent, terms=terms)
        return found[0] if found else self.store.look(by.domain, speaker)


def world_of(directory: Path) -> World:
    return World(open_database(directory))


def vector_of(speaker: str, clip: int = 0) -> np.ndarray:
    """A vector of length 1, another for each speaker and clip."""
    values = np.random.default_rng([clip, *speaker.encode()]).standard_normal(FIRST.dimension)
    return (values / np.linalg.norm(values)).astype(np.float32)


def told(speaker: Speaker) -> str:
    return speaker.id
