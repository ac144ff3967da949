"""Jobs at rest, in both databases: who may have how many, whose turn it is, who holds a job, what counts of its log."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.attempts import Attempt
from service.database import Database, open_database
from service.errors import Conflict, Internal, InvalidRequest, NotReady, Overloaded, StorageFull, UnknownJob
from service.jobs.job import Job, Kind, Status
from service.jobs.quota import JobQuota
from service.jobs.store import DIRECTORY, LEASE, JobStore

NOON = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
WEEK = timedelta(days=7)


class World:
    """A store, another server's of the same jobs, and their clock."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.now = NOON
        self.directory = directory / DIRECTORY
        self.store, self.other = (JobStore(database, directory, WEEK, lambda: self.now) for _ in range(2))

    def add(self, domain: str = "acme", actor: str = "key", body: bytes = b"audio", **more: object) -> Job:
        spool = self.store.spool()
        spool.write(body)
        time.sleep(0.002)  # ids are of their millisecond
        return self.store.add(domain, actor, Kind.EVENTS, {"adapters": ["birds@2"]}, spool, **more)[0]  # type: ignore[arg-type]

    def claimed(self) -> Job:
        job = self.store.claim()
        assert job is not None
        return job


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    made = World(open_database(tmp_path, url), tmp_path)
    yield made
    made.store.close()


def test_a_job_is_whole_once_it_is_told(world: World) -> None:
    job = world.add(body=b"some audio")
    assert (world.directory / job.id / "body").read_bytes() == b"some audio"
    found = world.other.find("acme", job.id)
    assert (found.status, found.size, found.asked, found.created) == ("queued", 10, {"adapters": ["birds@2"]}, NOON)
    with pytest.raises(UnknownJob):
        world.store.find("other", job.id)


def test_a_list_is_newest_first_and_of_one_domain(world: World) -> None:
    ids = [world.add().id for _ in range(3)]
    world.add("other")
    assert [job.id for job in world.store.page("acme", None, "", 2)] == [ids[2], ids[1]]
    assert [job.id for job in world.store.page("acme", None, ids[1], 2)] == [ids[0]]
    assert world.store.page("acme", Status.DONE, "", 9) == []


def test_domains_take_turns(world: World) -> None:
    for domain in ("acme", "acme", "acme", "zoo"):
        world.add(domain)
    order = []
    for _ in range(4):
        world.now += timedelta(seconds=1)
        order.append(world.claimed().domain)
    assert order == ["acme", "zoo", "acme", "acme"]
    assert world.other.claim() is None


def test_a_lease_holds_until_it_is_not_renewed(world: World) -> None:
    world.add()
    job = world.claimed()
    world.now += LEASE - timedelta(seconds=1)
    assert world.other.claim() is None
    world.store.renew(job)
    world.now += LEASE - timedelta(seconds=1)
    assert world.other.claim() is None
    world.now += timedelta(seconds=1)
    taken = world.other.claim()
    assert taken is not None
    assert (taken.attempt, taken.tries) == (2, 2)
    for change in (
        lambda: world.store.renew(job),
        lambda: world.store.end(job, b""),
        lambda: world.store.give_back(job),
    ):
        with pytest.raises(Conflict, match="another server"):
            change()


def test_a_log_goes_on_from_what_was_counted(world: World) -> None:
    world.add()
    first = world.claimed()
    log = world.store.open_log(first)
    world.store.get_on(first, log, b"one,", 0.25, 10.0)
    log.append(b"written, never counted")
    world.now += LEASE
    second = world.claimed()
    assert (second.progress, second.seconds, second.tries) == (0.25, 10.0, 1)
    again = world.store.open_log(second)
    log.append(b"by who lost it")  # into a file that does not count
    with pytest.raises(Conflict):
        world.store.get_on(first, log, b"x", 0.9, 90.0)
    world.store.get_on(second, again, b"two", 0.5, 20.0)
    with again.read() as file:
        assert file.read() == b"one,two"
    found = {path.name: path.stat().st_mode & 0o777 for path in (world.directory / first.id).iterdir()}
    assert found == {"body": 0o600, "log-2": 0o600}


def test_a_log_that_lost_what_was_counted_is_told(world: World) -> None:
    world.add()
    first = world.claimed()
    world.store.get_on(first, world.store.open_log(first), b"one,", 0.25, 10.0)
    (world.directory / first.id / "log-1").write_bytes(b"on")
    world.now += LEASE
    with pytest.raises(Internal, match="2 bytes"):
        world.store.open_log(world.claimed())


def test_what_is_given_back_is_anybodys_at_once(world: World) -> None:
    world.add()
    job = world.claimed()
    world.store.give_back(job)
    taken = world.other.claim()
    assert taken is not None
    assert taken.tries == 1  # a server that ended in peace was no try
    world.store.give_back(taken, tried=True)
    assert world.claimed().tries == 2


def test_an_end_leaves_the_result_alone(world: World) -> None:
    world.add()
    job = world.claimed()
    with pytest.raises(Conflict, match="0 % done"):
        world.store.result(job)
    world.store.end(job, b"events", seconds=60.0)
    done = world.store.find("acme", job.id)
    assert (done.status, done.progress, done.seconds, done.size) == ("done", 1.0, 60.0, 6)
    assert world.store.result(done).read_bytes() == b"events"
    assert [path.name for path in (world.directory / job.id).iterdir()] == ["result"]
    assert world.store.claim() is None


def test_a_failure_is_told_with_what_was_found_before(world: World) -> None:
    world.add()
    job = world.claimed()
    world.store.end(job, b"events", {"code": "bad_audio", "at": 40.0})
    failed = world.store.find("acme", job.id)
    assert (failed.status, failed.error) == ("failed", {"code": "bad_audio", "at": 40.0})
    assert world.store.result(failed).read_bytes() == b"events"


def test_dropping_cancels_then_removes(world: World) -> None:
    job = world.add()
    held = world.claimed()
    world.store.drop("acme", job.id)
    cancelled = world.store.find("acme", job.id)
    assert (cancelled.status, cancelled.size, cancelled.ended) == ("cancelled", 0, NOON)
    assert list(world.directory.iterdir()) == []
    with pytest.raises(Conflict, match="cancelled"):
        world.store.renew(held)
    with pytest.raises(Conflict, match="left no result"):
        world.store.result(cancelled)
    with pytest.raises(UnknownJob):
        world.store.drop("other", job.id)
    world.store.drop("acme", job.id)
    with pytest.raises(UnknownJob):
        world.store.find("acme", job.id)


def test_a_sweep_removes_what_is_old_or_nobodys(world: World) -> None:
    old, fresh = world.add(), world.add()
    world.store.end(world.claimed(), b"events")
    world.store.spool().write(b"broken off")
    for path in world.directory.glob(".*/body"):
        day_before = time.time() - 2 * 86_400
        for one in (path, path.parent):
            os.utime(one, (day_before, day_before))
    world.store.spool().write(b"on its way")
    world.now += WEEK - timedelta(seconds=1)
    world.store.sweep()
    assert len(list(world.directory.iterdir())) == 3
    world.now += timedelta(seconds=1)
    world.store.sweep()
    assert {path.name for path in world.directory.iterdir() if path.name[0] != "."} == {fresh.id}
    with pytest.raises(UnknownJob):
        world.store.find("acme", old.id)


def test_an_attempt_is_answered_once(world: World) -> None:
    attempt = Attempt.of("mine", b"asked")
    first = world.add(attempt=attempt)
    assert world.add(attempt=attempt).id == first.id
    world.store.check_quota("acme", "key", JobQuota(0, 0), "mine")  # it will be answered
    assert world.add("acme", "other key", attempt=attempt).id != first.id
    with pytest.raises(InvalidRequest, match="another job"):
        world.add(attempt=Attempt.of("mine", b"something else"))


def test_a_quota_leaves_room_for_other_keys(world: World) -> None:
    quota = JobQuota(max_jobs=3, max_bytes=20)
    world.add(quota=quota)
    world.add("acme", "second", quota=quota)
    for actor in ("key", "second"):  # each has one, one is free
        with pytest.raises(Overloaded, match="2 of 3 jobs"):
            world.add("acme", actor, quota=quota)
    world.add("acme", "third", quota=quota)
    with pytest.raises(Overloaded, match="3 of 3 jobs"):
        world.add("acme", "fourth", quota=quota)
    with pytest.raises(Overloaded, match="3 of 3 jobs"):  # before a body is read
        world.store.check_quota("acme", "fourth", quota, "new")
    with pytest.raises(StorageFull, match="DELETE jobs"):
        world.add("acme", "fourth", body=b"123456", quota=JobQuota(9, 20))
    world.add("zoo", quota=quota)


def test_a_server_takes_the_jobs_whose_files_it_has(world: World, tmp_path: Path) -> None:
    far = JobStore(world.store._database, tmp_path / "another", WEEK, lambda: world.now)
    job = world.add()
    assert far.claim() is None
    held = world.claimed()
    assert held.id == job.id
    world.store.end(held, b"{}")
    with pytest.raises(NotReady, match="data directory of another server") as caught:
        far.result(far.find("acme", job.id))
    assert caught.value.retry_after
    assert world.store.result(world.store.find("acme", job.id)).read_bytes() == b"{}"
