"""Jobs at work: trouble of one, or of the database, ends neither the runner nor another job."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.api.jobs import running
from service.api.jobs.running import Outcome, Runner, Taken
from service.database import database_of, open_database
from service.errors import StorageFull
from service.jobs.job import Job, Kind
from service.jobs.store import JobStore
from service.notices import Notices
from service.telemetry import Telemetry

Work = Callable[[Taken], Awaitable[Outcome]]


def awaited(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that runs in a loop of its own."""

    @wraps(test)
    def run(*args: Any, **named: Any) -> None:
        asyncio.run(test(*args, **named))

    return run


class Desk:
    """A store with runners, and a clock that can be put ahead."""

    def __init__(self, directory: Path) -> None:
        self.ahead = timedelta(0)
        self.store = JobStore(
            open_database(directory, ""), directory, timedelta(days=7), lambda: datetime.now(UTC) + self.ahead
        )

    def add(self) -> Job:
        spool = self.store.spool()
        spool.write(b"audio")
        return self.store.add("acme", "key", Kind.EVENTS, {"adapters": ["birds@2"]}, spool)[0]

    @asynccontextmanager
    async def runner(self, work: Work) -> AsyncIterator["asyncio.Task[None]"]:
        context: Any = SimpleNamespace(
            queueing=SimpleNamespace(run=asyncio.to_thread),
            notices=Notices(database_of(Path())),  # of nobody
            job_came=asyncio.Event(),
            draining=False,
            telemetry=Telemetry(),
        )
        runtime: Any = SimpleNamespace(jobs=self.store)
        task = asyncio.ensure_future(Runner(context, runtime, {Kind.EVENTS: work}).run())
        try:
            yield task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def until(self, job: Job, *statuses: str) -> Job:
        async with asyncio.timeout(30):
            while (found := self.store.find("acme", job.id)).status not in statuses:
                await asyncio.sleep(0.01)
        return found


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(running, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(running, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(running, "LEASE", timedelta(0))  # no pause between tries
    return Desk(tmp_path)


async def at_once(taken: Taken) -> Outcome:
    return Outcome(b"events")


@pytest.mark.parametrize("name", ["claim", "renew", "end", "give_back"])
@awaited
async def test_a_runner_outlives_any_error(
    desk: Desk, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, real = [name], getattr(desk.store, name)

    def once(*args: Any, **named: Any) -> Any:
        if broken:
            broken.clear()
            raise OSError("a disk of its own mind")
        return real(*args, **named)

    monkeypatch.setattr(desk.store, name, once)

    async def work(taken: Taken) -> Outcome:
        if name == "give_back" and broken:
            raise running.NotReady("not yet")
        while name == "renew" and broken:  # it is at work for as long as that takes
            await asyncio.sleep(0.01)
        return Outcome(b"events")

    first = desk.add()
    async with desk.runner(work) as task:
        while broken:
            await asyncio.sleep(0.01)
        assert (await desk.until(desk.add(), "done")).error is None
        desk.ahead += timedelta(minutes=1)  # what was left is taken again once its lease is over
        await desk.until(first, "done")
        assert not task.done()
    assert "a disk of its own mind" in caplog.text


@awaited
async def test_a_cancelled_job_ends_quietly(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    begun, gone = list[str](), asyncio.Event()

    async def work(taken: Taken) -> Outcome:
        begun.append(taken.job.id)
        await gone.wait()
        if taken.job.id == jobs[0].id:
            await taken.keep(b"chunk", 0.5, 1.0)
        taken.log.read().close()
        return Outcome(None)

    jobs = [desk.add(), desk.add()]
    async with desk.runner(work):
        while len(begun) < len(jobs):
            await asyncio.sleep(0.01)
        for job in jobs:
            desk.store.drop("acme", job.id)
        gone.set()
        assert (await desk.until(desk.add(), "done")).error is None
        async with asyncio.timeout(30):
            while caplog.text.count("was cancelled") < 2:
                await asyncio.sleep(0.01)
    told = [record for record in caplog.records if getattr(record, "job", "") in [job.id for job in jobs]]
    assert sum("was cancelled" in record.getMessage() for record in told) == 2
    assert {(record.levelname, record.exc_info) for record in told} == {("INFO", None)}


@awaited
async def test_a_full_disk_is_not_tried_for_ever(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "MAX_TRIES", 3)
    tried = []

    async def work(taken: Taken) -> Outcome:
        tried.append(taken.job.tries)
        raise StorageFull("no room at all")

    job = desk.add()
    async with desk.runner(work):
        failed = await desk.until(job, "failed")
    assert failed.error is not None
    assert (failed.error["code"], failed.error["detail"]) == ("storage_full", "no room at all")
    assert tried == [1, 2, 3]
