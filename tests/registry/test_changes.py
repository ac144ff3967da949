"""Changes are made by their deadline or never, by the rows that are there, by whoever owns the files."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import safetensors.torch
import torch
from sqlalchemy import event

from service.database import open_database
from service.deadline import Deadline
from service.errors import DeadlineExceeded, ServiceError, UnknownAdapter, UnknownVersion, WrongTask
from service.registry.bundle import BundleFiles, read_bundle
from service.registry.store import Registry
from service.registry.upload import Convert, Upload
from tests.registry.bundles import AST, VERIFICATION, bundle, fields, write_files
from tests.registry.publishing import publish

Change = Callable[[Registry, Deadline], object]

CHANGES: dict[str, Change] = {
    "upload": lambda r, d: r.publish_upload(arrived(r, bundle(seed=9)), deadline=d),
    "alias": lambda r, d: r.set_alias("events", "live", 1, deadline=d),
    "delete alias": lambda r, d: r.delete_alias("events", "old", deadline=d),
    "delete version": lambda r, d: r.delete_version("events", 1, deadline=d),
    "delete adapter": lambda r, d: r.delete_adapter("events", deadline=d),
}


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("postgres_url")) if request.param == "postgres" else ""


def arrived(registry: Registry, files: BundleFiles, name: str = "events", convert: Convert | None = None) -> Upload:
    """A bundle that is whole and nobody has published."""
    upload = registry.receive(name, convert)
    for part, content in (("config", files.config), ("weights", files.weights)):
        upload.begin(part)
        upload.write(part, content)
    return upload


def soon(seconds: float) -> Deadline:
    return Deadline(time.monotonic() + seconds)


def filled(data_dir: Path, url: str = "") -> Registry:
    registry = Registry(data_dir, AST, database_url=url)
    for seed in (1, 2):
        publish(registry, bundle(seed=seed))
    registry.set_alias("events", "old", 1)
    return registry


@contextmanager
def writer_elsewhere(data_dir: Path, url: str) -> Iterator[None]:
    """Another process in the midst of its write transaction."""
    with open_database(data_dir, url).write():
        yield


@contextmanager
def writer_here(registry: Registry) -> Iterator[None]:
    with registry._lock:
        yield


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("where", ["elsewhere", "here"])
def test_a_change_that_waited_too_long_never_happens(url: str, tmp_path: Path, what: str, where: str) -> None:
    registry = filled(tmp_path, url)
    before, history = list(registry.walk()), registry.history("events", 100)
    with writer_elsewhere(tmp_path, url) if where == "elsewhere" else writer_here(registry):
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            CHANGES[what](registry, soon(0.3))
        assert 0.25 < time.monotonic() - started < 10.0
    registry._catch_up()
    assert (list(registry.walk()), registry.history("events", 100)) == (before, history)
    CHANGES[what](registry, soon(30))
    assert registry.history("events", 100) != history if list(registry.walk()) else what == "delete adapter"


def test_conversions_wait_for_the_checks_under_way(tmp_path: Path) -> None:
    registry, converted = filled(tmp_path), list[str]()
    upload = arrived(registry, bundle(seed=9), convert=lambda directory, name: converted.append(name))
    with registry._checking, registry._checking, pytest.raises(DeadlineExceeded):
        registry.publish_upload(upload, deadline=soon(0.1))
    assert not converted


def test_the_deadline_is_looked_at_before_the_commit(url: str, tmp_path: Path) -> None:
    registry, deadline = filled(tmp_path, url), soon(60)
    before = list(registry.walk())

    def given_up_within(_: object, __: object) -> None:
        assert deadline.give_up()

    with pytest.raises(DeadlineExceeded):
        registry.publish_upload(arrived(registry, bundle(seed=9)), quota=given_up_within, deadline=deadline)
    registry._catch_up()  # removes the files, too
    assert list(registry.walk()) == before
    assert len([path for path in (tmp_path / "objects").iterdir() if path.is_dir()]) == 2


def test_a_commit_that_has_begun_cannot_be_given_up(url: str, tmp_path: Path) -> None:
    registry, deadline = filled(tmp_path, url), soon(60)
    given_up: list[bool] = []
    event.listen(registry._catalogue._database._engine, "commit", lambda _: given_up.append(deadline.give_up()))
    assert registry.set_alias("events", "live", 1, deadline=deadline).live == 1
    assert given_up == [False]
    assert registry.resolve("events").version == 1


def test_a_discard_at_every_step_of_publishing_hurts_nothing(tmp_path: Path) -> None:
    """From another thread, as the one that received the upload does it when the request's time is over."""
    registry = Registry(tmp_path, AST)
    is_past, step = False, 0
    while not is_past:
        files = bundle(f"events-{step}")
        upload = arrived(registry, files, f"events-{step}")
        with discarded_at(EVERY * step, upload) as discarded:
            try:
                published = registry.publish_upload(upload)
            except DeadlineExceeded:  # it was discarded before anybody published it
                assert step < 2
                published = None
        is_past, step = not discarded, step + 1
        if published is not None:
            assert published.created
            assert read_bundle(registry.weights_path(published.version).parent).digest == files.digest
            registry.load(published.version)
    assert step > 10
    assert [path for path in (tmp_path / "incoming").rglob("*") if path.is_file() and path.name != ".lock"] == []


EVERY = 9  # calls of the registry or the system


@contextmanager
def discarded_at(step: int, upload: Upload) -> Iterator[list[int]]:
    """Discards an upload from another thread as this one makes its call of that number; not empty once it has."""
    calls = 0
    discarded: list[int] = []

    def look(frame: FrameType, what: str, called: Any) -> None:
        nonlocal calls
        is_own = what == "call" and "/service/" in frame.f_code.co_filename
        if not is_own and not (what == "c_call" and called.__module__ == "posix"):
            return
        calls += 1
        if calls > step and not discarded:
            discarded.append(calls)
            thread = threading.Thread(target=upload.discard)
            thread.start()
            thread.join(0.02)  # it may have to wait for a step to end

    sys.setprofile(look)
    try:
        yield discarded
    finally:
        sys.setprofile(None)


def speaker() -> BundleFiles:
    """A bundle for another task under the same name."""
    other = fields(
        VERIFICATION, name="events", bottleneck_dim=0, backbone=fields()["backbone"], input=fields()["input"]
    )
    head = {"head.embedding.weight": torch.zeros(12, 16), "head.embedding.bias": torch.zeros(12)}
    return BundleFiles(json.dumps(other).encode(), safetensors.torch.save(head))


def test_two_servers_give_an_adapter_one_task(url: str, tmp_path: Path) -> None:
    together = threading.Barrier(2)
    servers = [Registry(tmp_path, AST, database_url=url, smoke=lambda _, __: together.wait() and None) for _ in "ab"]
    bundles = [bundle(), speaker()]
    for _ in range(4):

        def upload(server: int) -> str:
            try:
                return str(publish(servers[server], bundles[server]).version.manifest.task_type)
            except WrongTask as error:
                return error.code

        with ThreadPoolExecutor(2) as pool:
            answers = sorted(pool.map(upload, range(2)))
        assert answers[1] == "wrong_task"
        assert answers[0] != "wrong_task"
        servers[0].delete_adapter("events")
        for server in servers:
            server._catch_up()


def test_what_another_server_did_counts_before_it_is_known(url: str, tmp_path: Path) -> None:
    one, other = (Registry(tmp_path, AST, database_url=url) for _ in range(2))
    publish(one, bundle(seed=1))
    assert list(other.walk()) == []
    assert other.set_alias("events", "canary", 1).aliases == {"live": 1, "canary": 1}
    publish(one, bundle(seed=2), activate=False)
    assert other.set_alias("events", "live", 2).live == 2
    with pytest.raises(ServiceError, match="is live"):
        one.delete_version("events", 2)  # it is not, as far as this one knows
    other.delete_adapter("events")
    with pytest.raises(UnknownAdapter):
        one.set_alias("events", "canary", 1)


def test_what_is_answered_is_what_the_change_left(tmp_path: Path) -> None:
    registry = filled(tmp_path)

    def move(version: int) -> bool:
        return registry.set_alias("events", "canary", version).aliases["canary"] == version

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(move, [1, 2] * 20))


def test_known_bundles_are_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles, data_dir = tmp_path / "bundles", tmp_path / "data"
    for seed in range(40):
        write_files(bundles / f"{seed:02}", bundle(f"events-{seed}", seed=seed))
    first = Registry(data_dir, AST)
    assert set(first.register_directory(bundles).values()) == {None}
    assert len(list(first.walk())) == 40
    first.delete_adapter("events-7")
    first.close()
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    again = Registry(data_dir, AST)
    with writer_elsewhere(data_dir, ""):  # no write transaction would get in
        synced.clear()
        before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*") if "sqlite" not in path.name}
        found = again.register_directory(bundles)
        assert {path: path.stat().st_mtime_ns for path in before} == before
    assert synced == []
    assert list(found.values()) == [None] * 40
    assert len(list(again.walk())) == 39


def test_deleting_what_is_not_there(tmp_path: Path) -> None:
    registry = filled(tmp_path)
    with pytest.raises(UnknownVersion):
        registry.delete_version("events", 7)
    with pytest.raises(UnknownAdapter):
        registry.delete_adapter("none")
