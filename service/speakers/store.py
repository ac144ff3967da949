"""Speakers in the database: each change one transaction, seen by every server at once; a row in the journal for each.

What a method returned is there after a crash, and what it deleted does not come back.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import Connection

from service.attempts import Attempt
from service.database import Database, open_database
from service.deadline import Deadline
from service.errors import Conflict, ConsentRequired, InvalidRequest, SpeakerOptedOut, UnknownSpeaker
from service.routine import Routine
from service.settings import Settings
from service.speakers import journal, rows, upkeep
from service.speakers.journal import Action, By, Use
from service.speakers.speaker import Consent, Enrolment, Reference, Speaker, Spoken, Voice
from service.speakers.tables import metadata
from service.speakers.vault import Vault, Vector

MAX_ENROLMENTS: Final = 100  # of one speaker
SWEEP_SECONDS: Final = 30.0

T = TypeVar("T")


class Told(NamedTuple):
    """An answer, as it went out; `replayed` where it is that of an earlier try."""

    answer: str
    replayed: bool


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds of any change: until when, and under which key of its caller's."""

    deadline: Deadline | None = None
    attempt: Attempt | None = None


class SpeakerStore:
    """The speakers of one database. Thread-safe; several processes may share one.

    Args:
        vault: what the voiceprints are encrypted with.
        now: the clock, in UTC.
    """

    def __init__(self, database: Database, vault: Vault, now: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self.database = database
        self.vault = vault
        self._now = now
        self._sweeping: Routine | None = None
        self._is_unscrubbed = True  # something may have been deleted whose traces are still in the files
        database.prepare(metadata)

    def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.stop(seconds=1.0)
        self.database.close()

    # Reading

    def find(self, domain: str, speaker: str) -> Speaker:
        """One speaker. Raises UnknownSpeaker."""
        found = self.look(domain, speaker)
        if not found.is_known:
            raise _unknown(speaker)
        return found

    def look(self, domain: str, speaker: str) -> Speaker:
        """One speaker; an empty one where there is none of that id."""
        with self.database.read() as connection:
            return rows.find(connection, domain, speaker)

    def removals(self, domain: str, speaker: str) -> frozenset[str]:
        """The deletions and opt-outs so far of whoever had this id, for `enrol`."""
        with self.database.read() as connection:
            return journal.removals(connection, domain, speaker)

    def walk(self, domain: str, after: str = "") -> Iterator[Speaker]:
        """The speakers of a domain by their ids, those behind `after`."""
        while True:
            with self.database.read() as connection:
                ids = rows.ids_after(connection, domain, after, rows.AT_ONCE)
                found = rows.load(connection, domain, ids)
            yield from found
            if len(ids) < rows.AT_ONCE:
                return
            after = ids[-1]

    def recall(self, by: By, attempt: Attempt | None) -> Told | None:
        """What an attempt was answered before. Raises InvalidRequest, Conflict."""
        if attempt is None:
            return None
        with self.database.read() as connection:
            answer = journal.recall(connection, by, attempt, self._now())
        return None if answer is None else Told(answer, True)

    # Changing

    def put(
        self,
        by: By,
        speaker: str,
        fields: dict[str, Consent | timedelta | None],
        tell: Callable[[Speaker], str],
        terms: Terms | None = None,
    ) -> Told:
        """Make a speaker, or set what `fields` hold of `consent` and `lifetime`; None removes one."""

        def change(connection: Connection, before: Speaker, now: datetime) -> Speaker:
            self._require_row(connection, before, now)
            if before.has_expired(now) and before.expired is None:  # a longer life does not bring anybody back
                upkeep.expire(connection, *_place(before), before.expires, now)
            if "consent" in fields:
                rows.set_fields(connection, *_place(before), **_consent_columns(fields["consent"]))
            if "lifetime" in fields:
                lifetime = fields["lifetime"]
                seconds = int(lifetime.total_seconds()) if isinstance(lifetime, timedelta) else None
                until = None if seconds is None else (before.used or now) + timedelta(seconds=seconds)
                rows.set_fields(connection, *_place(before), lifetime=seconds, expires=until)
                rows.touch(connection, *_place(before))
            return rows.find(connection, *_place(before))

        return self._change(by, speaker, Action.PUT, terms, change, tell)

    def enrol(
        self,
        by: By,
        speaker: str,
        voice: Voice,
        clips: Sequence[Spoken],
        tell: Callable[[Speaker, list[Enrolment | None]], str],
        *,
        removals: frozenset[str],
        needs_consent: bool = False,
        terms: Terms | None = None,
    ) -> Told:
        """Add the clips in which somebody speaks; the first of them makes the speaker.

        Args:
            removals: as they were before the clips came.

        Raises:
            SpeakerOptedOut, ConsentRequired: they may not be enrolled.
            Conflict: the speaker was deleted or opted out meanwhile, even if they are back.
            InvalidRequest: more enrolments than a speaker may have.
            NotReady: this server lacks keys of the voiceprints there are.
        """

        def change(connection: Connection, before: Speaker, now: datetime) -> tuple[Speaker, list[Enrolment | None]]:
            check_may_enrol(before, needs_consent)
            if journal.removals(connection, *_place(before)) - removals:
                raise Conflict(f"{speaker} was deleted or opted out while this enrolment was under way")
            heard = [clip for clip in clips if clip.speech_seconds > 0]
            if not heard:
                return before, [None] * len(clips)
            upkeep.require_keys(connection, self.vault)
            if before.has_expired(now):  # the old ones may not be kept, so they do not count
                rows.delete_enrolments(connection, *_place(before))
            elif len(before.enrolments) + len(heard) > MAX_ENROLMENTS:
                raise InvalidRequest(
                    f"a speaker has at most {MAX_ENROLMENTS} enrolments, {speaker} has {len(before.enrolments)}"
                )
            self._require_row(connection, before, now)
            added = self._add(connection, before, voice, clips, now)
            rows.use(connection, before, now)
            rows.touch(connection, *_place(before))
            return rows.find(connection, *_place(before)), added

        return self._change(by, speaker, Action.ENROL, terms, change, lambda found: tell(*found), voice)

    def delete(self, by: By, speaker: str, terms: Terms | None = None) -> Told:
        """Remove a person, but for an opt-out. Raises UnknownSpeaker."""

        def change(connection: Connection, before: Speaker, now: datetime) -> None:
            if not before.is_known:
                raise _unknown(speaker)
            rows.remove(connection, *_place(before))
            journal.forget_speaker(connection, *_place(before))

        return self._change(by, speaker, Action.DELETE, terms, change, lambda _: "")

    def delete_enrolment(self, by: By, speaker: str, enrolment: int, terms: Terms | None = None) -> Told:
        """Remove one enrolment. Raises UnknownSpeaker, also where the speaker has no such enrolment."""

        def change(connection: Connection, before: Speaker, now: datetime) -> None:
            if not before.is_known:
                raise _unknown(speaker)
            if not rows.delete_enrolments(connection, *_place(before), enrolment):
                raise UnknownSpeaker(f"{speaker} has no enrolment {enrolment}")
            rows.touch(connection, *_place(before))

        return self._change(by, speaker, Action.DELETE_ENROLMENT, terms, change, lambda _: "")

    def opt_out(self, by: By, speaker: str, tell: Callable[[Speaker], str], terms: Terms | None = None) -> Told:
        """Remove somebody's voiceprints and take no more of them until `opt_in`; also of an id that is not known."""

        def change(connection: Connection, before: Speaker, now: datetime) -> Speaker:
            rows.set_opt_out(connection, *_place(before), now)
            if rows.delete_enrolments(connection, *_place(before)):
                rows.touch(connection, *_place(before))
            return rows.find(connection, *_place(before))

        return self._change(by, speaker, Action.OPT_OUT, terms, change, tell)

    def opt_in(self, by: By, speaker: str, tell: Callable[[Speaker], str], terms: Terms | None = None) -> Told:
        """Lift an opt-out; the voiceprints are not there any more."""

        def change(connection: Connection, before: Speaker, now: datetime) -> Speaker:
            rows.set_opt_out(connection, *_place(before), None)
            return rows.find(connection, *_place(before))

        return self._change(by, speaker, Action.OPT_IN, terms, change, tell)

    # Using

    def judge(
        self,
        by: By,
        speaker: str,
        voice: Voice,
        decide: Callable[[Speaker, list[Reference]], tuple[T, str]],
        deadline: Deadline | None = None,
    ) -> T:
        """What `decide` makes of the speaker as they are now, and their references by this version of an adapter.

        Args:
            decide: answers what came out, and its word for the journal. Where the word is a decision on a voice
                (not on the speaker's standing), the voiceprints count as used.
        """
        with self.database.write(deadline) as connection:
            now = self._now()
            found = rows.find(connection, by.domain, speaker)
            seconds = {enrolment.id: enrolment.speech_seconds for enrolment in found.of(voice.digest)}
            vectors = rows.vectors(connection, self.vault, found, voice.digest) if seconds else {}
            outcome, word = decide(found, [Reference(vectors[one], seconds[one]) for one in seconds])
            if word in ("accept", "reject"):
                rows.use(connection, found, now)
            if found.is_known:  # the id of somebody deleted must not come back by being asked for
                journal.record(connection, by, speaker, Action.VERIFY, now, voice, word)
        return outcome

    def identified(
        self, by: By, found: tuple[int, str] | None, voice: Voice, word: str, deadline: Deadline | None = None
    ) -> None:
        """Note an identification, which uses the voiceprints of who was found.

        Args:
            found: number and id; None for nobody.

        Raises:
            Conflict: who was found has been deleted or has opted out meanwhile.
        """
        with self.database.write(deadline) as connection:
            now = self._now()
            if found is not None:
                number, speaker = found
                current = rows.find(connection, by.domain, speaker)
                if current.opted_out is not None or rows.number_of(connection, by.domain, speaker) != number:
                    raise Conflict("who was found was deleted or opted out while the search was under way; try again")
                rows.use(connection, current, now)
            named = "" if found is None else found[1]
            journal.record(connection, by, named, Action.IDENTIFY, now, voice, word)

    def export(self, by: By, speaker: str) -> tuple[Speaker, dict[int, Vector], list[Use]]:
        """All that is stored of a person: the speaker, the vectors by enrolment, the uses. Raises UnknownSpeaker."""
        with self.database.write() as connection:
            found = rows.find(connection, by.domain, speaker)
            if not found.is_known:
                raise _unknown(speaker)
            journal.record(connection, by, speaker, Action.EXPORT, self._now())
            vectors = rows.vectors(connection, self.vault, found)
            return found, vectors, journal.uses_of(connection, by.domain, speaker)

    def now(self) -> datetime:
        return self._now()

    # In the background

    def keep_swept(self, uses_kept: timedelta, seconds: float = SWEEP_SECONDS) -> None:
        """Sweep now and again, in a thread, until `close`."""
        self._sweeping = Routine("sweeping what has expired", lambda: self.sweep(uses_kept))
        self._sweeping.start(seconds)

    def sweep(self, uses_kept: timedelta) -> None:
        """Remove what has expired or was kept for long enough, then what the files still hold of it."""
        if upkeep.sweep(self.database, self._now(), uses_kept) or self._is_unscrubbed:
            self.scrub()

    def scrub(self) -> None:
        """Overwrite what was deleted in the database's files, as far as the database can."""
        self._is_unscrubbed = not upkeep.scrub(self.database)

    def rewrite(self) -> int:
        """Encrypt everything anew that is not under the current key; how many voiceprints that were."""
        count = upkeep.rewrite(self.database, self.vault)
        self.scrub()
        return count

    # Behind the public methods

    def _change(
        self,
        by: By,
        speaker: str,
        action: Action,
        terms: Terms | None,
        work: Callable[[Connection, Speaker, datetime], T],
        tell: Callable[[T], str],
        voice: Voice | None = None,
    ) -> Told:
        """One change of one speaker, in the journal, and answered once for each attempt."""
        terms = terms or Terms()
        with self.database.write(terms.deadline) as connection:
            now = self._now()
            if terms.attempt is not None:
                known = journal.recall(connection, by, terms.attempt, now)
                if known is not None:
                    return Told(known, True)
            before = rows.find(connection, by.domain, speaker)
            answer = tell(work(connection, before, now))
            after = rows.find(connection, by.domain, speaker)
            if before.is_known or after.is_known:
                journal.record(connection, by, speaker, action, now, voice)
            if terms.attempt is not None:
                named = "" if action is Action.DELETE else speaker
                journal.remember(connection, by, terms.attempt, named, answer, now)
        if action is Action.DELETE or before.has_lost(after):
            self._is_unscrubbed = True
            if self.database.is_sqlite:  # a vacuum may take its time: that of a sweep
                self.scrub()
        return Told(answer, False)

    def _add(
        self, connection: Connection, speaker: Speaker, voice: Voice, clips: Sequence[Spoken], now: datetime
    ) -> list[Enrolment | None]:
        number = rows.last_enrolment(connection, *_place(speaker))
        added: list[Enrolment | None] = []
        for clip in clips:
            if not clip.speech_seconds > 0:
                added.append(None)
                continue
            number += 1
            enrolment = Enrolment(
                number,
                *(voice.adapter, voice.version, voice.digest),
                *(clip.speech_seconds, voice.enrol_seconds, clip.warnings),
                now,
            )
            rows.add_enrolment(connection, self.vault, speaker, enrolment, clip.vector)
            added.append(enrolment)
        rows.set_fields(connection, *_place(speaker), last_enrolment=number, expired=None)
        return added

    def _require_row(self, connection: Connection, speaker: Speaker, now: datetime) -> None:
        if speaker.created is None:
            rows.add(connection, *_place(speaker), now)


def open_speakers(settings: Settings) -> SpeakerStore:
    """The speakers of a service. Raises InvalidRequest where the keys of their voiceprints cannot be read."""
    database = open_database(settings.data_dir, settings.database_url)
    return SpeakerStore(database, Vault.of(settings))


def check_may_enrol(speaker: Speaker, needs_consent: bool) -> None:
    """Raise SpeakerOptedOut or ConsentRequired for somebody who may not be enrolled."""
    if speaker.opted_out is not None:
        raise SpeakerOptedOut(f"{speaker.id} has opted out; only an opt-in lifts that")
    if needs_consent and speaker.consent is None:
        raise ConsentRequired(
            f"{speaker.id} has not consented: PUT the speaker with a consent, as in "
            '{"consent": {"by": "Jo", "at": "2026-11-28T12:00:00Z", "text": "..."}}, then enrol'
        )


def _unknown(speaker: str) -> UnknownSpeaker:
    return UnknownSpeaker(f"there is no speaker {speaker!a} in this domain")


def _place(speaker: Speaker) -> tuple[str, str]:
    return speaker.domain, speaker.id


def _consent_columns(consent: Any) -> dict[str, Any]:
    if consent is None:
        return {"consent_by": None, "consent_at": None, "consent_text": None}
    return {"consent_by": consent.by, "consent_at": consent.at, "consent_text": consent.text}
