"""What of voices is kept in memory: galleries in step with the database, each search first takes over what has changed
since the one before; and cohorts, read once from the weights of adapters' versions.
"""

from collections import OrderedDict, defaultdict
from threading import Lock
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, func, select

from service.database import Database
from service.registry.bundle import COHORT
from service.registry.store import AdapterVersion, Registry
from service.scoring.cohort import Cohort
from service.speakers.gallery import Gallery, Person
from service.speakers.rows import decrypt
from service.speakers.speaker import Reference, Voice
from service.speakers.tables import changes, enrolments, speakers
from service.speakers.vault import Vault
from service.speakers.verifying import merged

MOST_COHORTS: Final = 32  # in memory; the one that was not asked for longest goes
MOST_GALLERIES: Final = 32  # in memory; the one that was not searched for longest goes


class Galleries:
    """The galleries of one database. Thread-safe."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._lock = Lock()
        self._galleries: OrderedDict[tuple[str, str], Gallery] = OrderedDict()

    def of(self, domain: str, voice: Voice, merge: str) -> Gallery:
        """Everybody of a domain who is enrolled by this version, as of now; `merge` is its manifest's."""
        place = domain, voice.digest
        with self._lock:
            gallery = self._galleries.setdefault(place, Gallery(voice.dimension))
            self._galleries.move_to_end(place)
            if len(self._galleries) > MOST_GALLERIES:
                self._galleries.popitem(last=False)
        with gallery.updating:
            self._catch_up(gallery, domain, voice, merge)
        return gallery

    def _catch_up(self, gallery: Gallery, domain: str, voice: Voice, merge: str) -> None:
        with self._database.read() as connection:
            newest = select(func.max(changes.c.revision)).where(changes.c.domain == domain)
            revision = int(connection.scalar(newest) or 0)
            if revision == gallery.revision:
                return
            changed = _changed(connection, domain, voice.digest, gallery.revision)
        gallery.update({number: self._person(found, voice, merge) for number, found in changed.items()})
        gallery.revision = revision

    def _person(self, rows: list[Any], voice: Voice, merge: str) -> Person | None:
        """None of somebody who is not enrolled."""
        if not rows or sum(row.speech_seconds for row in rows) < voice.enrol_seconds:
            return None
        references = [Reference(decrypt(self._vault, row), row.speech_seconds) for row in rows]
        vectors = [one.vector for one in references] if merge == "best" else [merged(references)]
        return Person(rows[0].speaker, vectors, rows[0].expires)


def _changed(connection: Connection, domain: str, digest: str, since: int) -> dict[int, list[Any]]:
    """The rows of each speaker that changed after a revision, by number; none of one who is gone."""
    newer = (changes.c.domain == domain, changes.c.revision > since)
    found: dict[int, list[Any]] = defaultdict(list)
    if since:  # at first there is nobody to take out
        found.update({number: [] for number in connection.scalars(select(changes.c.number).where(*newer))})
    rows = (
        select(enrolments, speakers.c.number, speakers.c.expires)
        .join(speakers, (speakers.c.domain == enrolments.c.domain) & (speakers.c.speaker == enrolments.c.speaker))
        .join(changes, (changes.c.domain == speakers.c.domain) & (changes.c.number == speakers.c.number))
        .where(*newer, enrolments.c.digest == digest)
    )
    for row in connection.execute(rows):
        found[row.number].append(row)
    return found


class Cohorts:
    """Of the adapters of one registry. Thread-safe."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = Lock()
        self._cohorts: OrderedDict[str, Cohort] = OrderedDict()  # by digest

    def of(self, version: AdapterVersion) -> Cohort | None:
        """None of a version without `normalisation`. Raises AdapterFailed where its weights cannot be read."""
        normalisation = version.manifest.normalisation
        if normalisation is None:
            return None
        with self._lock:
            if version.digest not in self._cohorts:
                tensor = self._registry.load(version).tensors[COHORT]
                self._cohorts[version.digest] = Cohort(np.array(tensor.numpy()), normalisation.top)
                if len(self._cohorts) > MOST_COHORTS:
                    self._cohorts.popitem(last=False)
            self._cohorts.move_to_end(version.digest)
            return self._cohorts[version.digest]
