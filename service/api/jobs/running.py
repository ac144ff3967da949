"""Jobs at work: a few at a time, beside requests, which go first. What one finds is kept a chunk at a time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from service.api.context import Context, Runtime
from service.api.problems import told
from service.errors import (
    Conflict,
    Internal,
    NoFreeSlot,
    NotReady,
    Overloaded,
    RegistryUnavailable,
    ServiceError,
    StorageFull,
)
from service.jobs.files import Log
from service.jobs.job import Job, Kind
from service.jobs.store import LEASE, MAX_TRIES
from service.notices import Topic

AT_ONCE: Final = 2  # jobs of one server
LOOK_SECONDS: Final = 1.0  # between looks for jobs that other servers took in or gave up
RENEW_SECONDS: Final = LEASE.total_seconds() / 4
LATER: Final = (NotReady, Overloaded, NoFreeSlot, RegistryUnavailable)  # passes by itself

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job, `seconds` of audio long; the error is what it ended with."""

    result: bytes | None
    error: ServiceError | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Taken:
    """A job that this server has taken."""

    context: Context
    runtime: Runtime
    job: Job
    log: Log

    async def keep(self, chunk: bytes, progress: float, seconds: float) -> None:
        """Adds a chunk to what was found so far. Raises Conflict where the job is another server's now."""
        store = self.runtime.jobs
        await self.context.queueing.run(store.get_on, self.job, self.log, chunk, progress, seconds)


Work = Callable[[Taken], Awaitable[Outcome]]


class Runner:
    """Runs the jobs of a service.

    Args:
        works: what each kind of job does.
    """

    def __init__(self, context: Context, runtime: Runtime, works: Mapping[Kind, Work]) -> None:
        self._context = context
        self._runtime = runtime
        self._works = works
        self._store = runtime.jobs
        self._run = context.queueing.run
        loop = asyncio.get_running_loop()
        self._pace = context.notices.pace(
            Topic.JOBS, lambda: loop.call_soon_threadsafe(context.job_came.set), LOOK_SECONDS
        )

    async def run(self) -> None:
        """Takes one job after the other until it is cancelled; what is under way then is anybody's at once."""
        places = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            while True:
                await places.acquire()
                group.create_task(self._hold(await self._next())).add_done_callback(lambda _: places.release())

    async def _next(self) -> Job:
        while True:
            self._context.job_came.clear()
            try:
                if not self._context.draining and (job := await self._run(self._store.claim)) is not None:
                    return job
            except ServiceError:
                pass  # the database is away, which others say
            except Exception:
                _log.exception("no job could be taken")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace()):
                    await self._context.job_came.wait()

    async def _hold(self, job: Job) -> None:
        """Works at a job as long as its lease can be renewed; its trouble is no other job's."""
        work = asyncio.ensure_future(self._work(job))
        try:
            while not (await asyncio.wait({work}, timeout=RENEW_SECONDS))[0]:
                await self._run(self._store.renew, job)
            await work
        except ServiceError as error:  # cancelled, or it goes on where it was once its lease is over
            _log.info("left a job: %s", error.detail, extra={"job": job.id})
        except Exception:
            _log.exception("left a job", extra={"job": job.id})
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _work(self, job: Job) -> None:
        try:
            await self._end(job, await self._outcome(job))
        except asyncio.CancelledError:
            with suppress(ServiceError):
                await asyncio.shield(self._run(self._store.give_back, job, timedelta(0)))
            raise
        except StorageFull as error:
            if job.tries >= MAX_TRIES:
                await self._end(job, Outcome(None, error))
                return
            _log.warning("a job waits: %s", error.detail, extra={"job": job.id})
            await self._run(self._store.give_back, job, LEASE, tried=True)
        except LATER as error:
            _log.info("a job waits: %s", error.detail, extra={"job": job.id})
            await self._run(self._store.give_back, job, LEASE)

    async def _end(self, job: Job, outcome: Outcome) -> None:
        fault = None if outcome.error is None else told(outcome.error)
        await self._run(self._store.end, job, outcome.result, fault, outcome.seconds)
        self._context.telemetry.jobs.labels(job.kind, "done" if fault is None else "failed").inc()
        _log.info("a job has ended", extra={"job": job.id, "error": fault and fault["code"]})

    async def _outcome(self, job: Job) -> Outcome:
        """Raises Conflict where it is lost, StorageFull or one of LATER where it is to be tried again."""
        if job.tries > MAX_TRIES:
            return Outcome(None, Internal(f"the service ended {MAX_TRIES} times while it was at this job"))
        try:
            log = await self._run(self._store.open_log, job)
            return await self._works[job.kind](Taken(self._context, self._runtime, job, log))
        except (Conflict, StorageFull, *LATER):
            raise
        except ServiceError as error:
            return Outcome(None, error)
        except Exception:
            await self._run(self._store.renew, job)  # Conflict: it was cancelled, which took its files away
            _log.exception("a job failed", extra={"job": job.id})
            return Outcome(None, Internal("the service failed on this job; its log says why under the job's id"))
