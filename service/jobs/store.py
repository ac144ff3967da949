"""Jobs at rest: who asked for what, how far it has come, which server is at it; each in the domain of its key.

A server that takes a job has a lease of it, which it renews; where it no longer does, another server goes on from what
the job's log holds. Whoever has lost a job in this way can change nothing of it any more.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, delete, func, insert, or_, select, update

from service.access.keys import parse_lifetime
from service.attempts import Attempt
from service.database import Database, open_database
from service.deadline import Deadline
from service.errors import Conflict, InvalidRequest, NotReady, UnknownJob
from service.jobs import files
from service.jobs.files import Log, Spool
from service.jobs.job import OPEN, Job, Kind, Status, job_of
from service.jobs.quota import JobQuota
from service.jobs.tables import jobs, metadata
from service.notices import Topic, announce
from service.private import make_private
from service.routine import Routine
from service.settings import Settings

DIRECTORY: Final = "jobs"  # of the data directory
LEASE: Final = timedelta(seconds=6)  # without a sign of life a job is anybody's
MAX_TRIES: Final = 20  # of a job that does not get on: it may be what ends the service
SWEEP_SECONDS: Final = 30.0
_LOOKED_AT: Final = 1_000  # jobs
_STALE_SECONDS: Final = 86_400  # after which files that belong to no job are left over


class JobStore:
    """The jobs of one database and data directory. Thread-safe; several processes may share both.

    Args:
        retention: how long the result of a job is kept behind its end.
        now: the clock, in UTC; leases are told by it, so servers that share a database keep the same time.
    """

    def __init__(
        self,
        database: Database,
        data_dir: Path,
        retention: timedelta,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.retention = retention
        self._database = database
        self._directory = data_dir / DIRECTORY
        self._now = now
        self._sweeping = Routine("sweeping old jobs", self.sweep)
        database.prepare(metadata)
        make_private(self._directory)

    def keep_swept(self, seconds: float = SWEEP_SECONDS) -> None:
        """Sweep now and again, in a thread, until `close`."""
        self._sweeping.start(seconds)

    def close(self) -> None:
        self._sweeping.stop(seconds=1.0)
        self._database.close()

    # What callers do

    def spool(self) -> Spool:
        """Where a body goes until it is a job's. Raises StorageFull."""
        return Spool(self._directory)

    def add(
        self,
        domain: str,
        actor: str,
        kind: Kind,
        asked: Mapping[str, Any],
        spool: Spool,
        *,
        quota: JobQuota | None = None,
        attempt: Attempt | None = None,
        deadline: Deadline | None = None,
    ) -> tuple[Job, bool]:
        """A new job, which is there after a crash; or that of an earlier try of this attempt, and True.

        Raises:
            Overloaded, StorageFull: the domain has too many, or too large ones.
            InvalidRequest: the attempt's key was used for something else.
        """
        now = self._now()
        job = f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"
        with self._database.write(deadline) as connection:
            if attempt is not None and (known := self._recall(connection, domain, actor, attempt)) is not None:
                return known, True
            if quota is not None:
                quota.check(connection, domain, actor, spool.size)
            zeros = dict.fromkeys(("progress", "seconds", "attempt", "tries", "log", "logged"), 0)
            connection.execute(
                insert(jobs).values(
                    id=job,
                    domain=domain,
                    actor=actor,
                    kind=kind,
                    asked=json.dumps(asked),
                    key=attempt and attempt.key,
                    request=attempt and attempt.request,
                    status=Status.QUEUED,
                    created=now,
                    size=spool.size,
                    **zeros,
                )
            )
            announce(connection, Topic.JOBS)
            spool.become(self._directory / job)  # without its row it is swept
        return self.find(domain, job), False

    def check_quota(self, domain: str, actor: str, quota: JobQuota, key: str | None) -> None:
        """Raise Overloaded, StorageFull before a body is read, unless an earlier try of this key may be answered."""
        mine = (jobs.c.domain == domain, jobs.c.actor == actor, jobs.c.key == key)
        with self._database.read() as connection:
            if key is None or connection.execute(select(jobs.c.id).where(*mine)).first() is None:
                quota.check(connection, domain, actor, 0)

    def find(self, domain: str, job: str) -> Job:
        """One job. Raises UnknownJob."""
        with self._database.read() as connection:
            return _find(connection, domain, job)

    def page(self, domain: str, status: Status | None, after: str, limit: int) -> list[Job]:
        """The jobs of a domain, newest first, those before the one called `after`."""
        query = select(jobs).where(jobs.c.domain == domain).order_by(jobs.c.id.desc()).limit(limit)
        if status is not None:
            query = query.where(jobs.c.status == status)
        if after:
            query = query.where(jobs.c.id < after)
        with self._database.read() as connection:
            return [job_of(row) for row in connection.execute(query)]

    def drop(self, domain: str, job: str, deadline: Deadline | None = None) -> None:
        """Cancel a job; remove one that has ended. Raises UnknownJob."""
        with self._database.write(deadline) as connection:
            found = _find(connection, domain, job)
            if found.status in OPEN:
                self._end(connection, jobs.c.id == job, Status.CANCELLED, found.progress, 0, None)
            else:
                connection.execute(delete(jobs).where(jobs.c.id == job))
        files.remove(self.directory(job))

    def result(self, job: Job) -> Path:
        """Where the result of a job that has ended lies. Raises Conflict where there is none, NotReady: elsewhere."""
        path = self.directory(job.id) / files.RESULT
        if job.status in OPEN:
            told = f"the job is {job.status}, {100 * job.progress:.0f} % done; its result is there once it has ended"
            raise Conflict(told, retry_after=5.0)
        if not path.is_file() and job.size:
            raise NotReady(f"the result of {job.id} lies in the data directory of another server", retry_after=1.0)
        if not path.is_file():
            raise Conflict(f"the job is {job.status} and left no result")
        return path

    def directory(self, job: str) -> Path:
        return self._directory / job

    def body(self, job: Job) -> Path:
        return self.directory(job.id) / files.BODY

    # What the server does that is at it

    def claim(self) -> Job | None:
        """The next job for this server, whose lease it has from now on; domains take turns. None: there is none.

        It is one whose files lie here: servers of one database may have data directories of their own.
        """
        now = self._now()
        due = or_(jobs.c.status == Status.QUEUED, (jobs.c.status == Status.RUNNING) & (jobs.c.leased_until <= now))
        with self._database.read() as connection:  # most often there is none: no need to keep writers from anything
            found = connection.scalars(select(jobs.c.id).where(due).order_by(jobs.c.id).limit(_LOOKED_AT))
            here = [one for one in found if self.directory(one).is_dir()]
        if not here:
            return None
        due &= jobs.c.id.in_(here)
        with self._database.write() as connection:
            at_it = (jobs.c.status == Status.RUNNING) & (jobs.c.leased_until > now)
            domain, never = jobs.c.domain, datetime.min.replace(tzinfo=UTC)
            running = _pairs(connection, select(domain, func.count()).where(at_it).group_by(domain))
            served = _pairs(connection, select(domain, func.max(jobs.c.started)).group_by(domain))
            waiting = _pairs(connection, select(domain, func.min(jobs.c.id)).where(due).group_by(domain))
            turns = [(running.get(one, 0), served[one] or never, job) for one, job in waiting.items()]
            if not turns:
                return None
            job = min(turns)[2]
            row = connection.execute(select(jobs.c.attempt, jobs.c.tries).where(jobs.c.id == job)).one()
            values = {"status": Status.RUNNING, "started": now, "leased_until": now + LEASE}
            values |= {"attempt": row.attempt + 1, "tries": row.tries + 1}
            connection.execute(update(jobs).where(jobs.c.id == job).values(values))
            return job_of(connection.execute(select(jobs).where(jobs.c.id == job)).one())

    def open_log(self, job: Job) -> Log:
        """The log of a job that this server has claimed, with what counts of those before. Raises StorageFull."""
        return Log(self.directory(job.id), job.attempt, (job.log, job.logged))

    def renew(self, job: Job) -> None:
        """Show that somebody is at it still. Raises Conflict: it is not this server's any more."""
        with self._database.write() as connection:
            self._change(connection, job, leased_until=self._now() + LEASE)

    def get_on(self, job: Job, log: Log, chunk: bytes, progress: float, seconds: float) -> None:
        """Append a finished chunk to the job's log, and count it.

        Raises:
            Conflict: it is not this server's any more. StorageFull: no room.
        """
        size = log.append(chunk)
        with self._database.write() as connection:
            values = {"log": job.attempt, "logged": size, "progress": progress, "seconds": seconds, "tries": 0}
            self._change(connection, job, leased_until=self._now() + LEASE, **values)
        log.outlive()

    def end(self, job: Job, result: bytes | None, error: Mapping[str, Any] | None = None, seconds: float = 0.0) -> None:
        """End a job with its result, where there is one. Raises Conflict, StorageFull as `get_on`."""
        directory = self.directory(job.id)
        status = Status.DONE if error is None else Status.FAILED
        with self._database.write() as connection:
            mine = _held(job)
            progress = 1.0 if error is None else job.progress
            if not self._end(connection, mine, status, progress, len(result or b""), error, seconds):
                raise _lost(job)
            if result is not None:
                files.keep_result(directory, result)
        files.leave_result(directory)

    def give_back(self, job: Job, pause: timedelta = timedelta(0), *, tried: bool = False) -> None:
        """Let any server have it after a pause; `tried` is whether this was a try. Raises Conflict as `renew`."""
        with self._database.write() as connection:
            self._change(connection, job, leased_until=self._now() + pause, **({} if tried else {"tries": 0}))
            if not pause:
                announce(connection, Topic.JOBS)

    def sweep(self) -> None:
        """Remove jobs that ended long enough ago, and files that are no job's."""
        with self._database.write() as connection:
            old = jobs.c.ended <= self._now() - self.retention
            gone = list(connection.scalars(select(jobs.c.id).where(old)))
            connection.execute(delete(jobs).where(old))
        for job in gone:
            files.remove(self.directory(job))
        with self._database.read() as connection:
            known = set(connection.scalars(select(jobs.c.id)))
        before = time.time() - _STALE_SECONDS
        for path in self._directory.iterdir():
            if path.name not in known and files.last_change(path) < before:
                files.remove(path)

    # Behind the public methods

    def _recall(self, connection: Connection, domain: str, actor: str, attempt: Attempt) -> Job | None:
        mine = (jobs.c.domain == domain, jobs.c.actor == actor, jobs.c.key == attempt.key)
        row = connection.execute(select(jobs).where(*mine)).first()
        if row is not None and row.request != attempt.request:
            told = f"the Idempotency-Key {attempt.key[:80]!a} was used for another job, {row.id}; use a new one"
            raise InvalidRequest(told)
        return None if row is None else job_of(row)

    def _change(self, connection: Connection, job: Job, **values: Any) -> None:
        """Raises Conflict for a job that is not this server's any more."""
        if not connection.execute(update(jobs).where(_held(job)).values(values)).rowcount:
            raise _lost(job)

    def _end(
        self,
        connection: Connection,
        which: ColumnElement[bool],
        status: Status,
        progress: float,
        size: int,
        error: Mapping[str, Any] | None,
        seconds: float | None = None,
    ) -> bool:
        values: dict[str, Any] = {"status": status, "ended": self._now(), "leased_until": None, "size": size}
        values |= {"progress": progress, "error": None if error is None else json.dumps(error)}
        values |= {} if seconds is None else {"seconds": seconds}
        return bool(connection.execute(update(jobs).where(which).values(values)).rowcount)


def open_jobs(settings: Settings) -> JobStore:
    """The jobs of a service. Raises InvalidRequest where --job-retention is no time."""
    database = open_database(settings.data_dir, settings.database_url)
    return JobStore(database, settings.data_dir, parse_lifetime(settings.job_retention))


def _find(connection: Connection, domain: str, job: str) -> Job:
    row = connection.execute(select(jobs).where(jobs.c.domain == domain, jobs.c.id == job)).one_or_none()
    if row is None:
        raise UnknownJob(f"there is no job {job[:80]!a} in this domain; results are kept for --job-retention")
    return job_of(row)


def _pairs(connection: Connection, query: Select[Any]) -> dict[str, Any]:
    return {row[0]: row[1] for row in connection.execute(query)}


def _held(job: Job) -> ColumnElement[bool]:
    return (jobs.c.id == job.id) & (jobs.c.attempt == job.attempt) & (jobs.c.status == Status.RUNNING)


def _lost(job: Job) -> Conflict:
    return Conflict(f"the job {job.id} was cancelled, or another server has taken it over")
