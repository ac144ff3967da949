"""The states of a speaker and every way from one to another, by the store and by time."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from service.errors import InvalidRequest, SpeakerOptedOut
from service.speakers.speaker import Status, require_speaker
from tests.speakers.world import ACME, FIRST, OTHER, SECOND, World, told, world_of

EASIER = replace(SECOND, enrol_seconds=1.0)
Step = Callable[[World], object]


def enrolled(*seconds: float, voice: object = FIRST) -> Step:
    return lambda world: world.enrol("ann", *seconds, voice=voice)  # type: ignore[arg-type]


def lasting(days: int | None) -> Step:
    lifetime = None if days is None else timedelta(days=days)
    return lambda world: world.store.put(ACME, "ann", {"lifetime": lifetime}, told)


def later(days: float) -> Step:
    return lambda world: world.clock.pass_by(days=days)


def verified(world: World) -> object:
    return world.store.judge(ACME, "ann", FIRST, lambda speaker, references: (None, "accept"))


def looked_at(world: World) -> object:
    return world.store.judge(ACME, "ann", FIRST, lambda speaker, references: (None, "voiceprint_stale"))


def swept(world: World) -> object:
    return world.store.sweep(timedelta(days=3650))


def opted_out(world: World) -> object:
    return world.store.opt_out(ACME, "ann", told)


def opted_in(world: World) -> object:
    return world.store.opt_in(ACME, "ann", told)


def deleted(world: World) -> object:
    return world.store.delete(ACME, "ann")


def one_removed(world: World) -> object:
    return world.store.delete_enrolment(ACME, "ann", 1)


JOURNEYS: dict[str, tuple[list[Step], Status]] = {
    "nobody": ([], Status.PENDING),
    "put only": ([lasting(1)], Status.PENDING),
    "put long ago": ([lasting(1), later(9), swept], Status.PENDING),
    "not enough": ([enrolled(2.9)], Status.PENDING),
    "no speech": ([enrolled(0.0)], Status.PENDING),
    "enough": ([enrolled(3.0)], Status.ENROLLED),
    "enough together": ([enrolled(1.0), enrolled(1.0, 1.0)], Status.ENROLLED),
    "enough of another adapter": ([enrolled(9.0, voice=OTHER)], Status.PENDING),
    "of another version": ([enrolled(9.0, voice=SECOND)], Status.STALE),
    "begun anew after another version": ([enrolled(9.0, voice=SECOND), enrolled(1.0)], Status.PENDING),
    "enrolled anew after another version": ([enrolled(9.0, voice=SECOND), enrolled(3.0)], Status.ENROLLED),
    "one enrolment removed": ([enrolled(2.0, 2.0), one_removed], Status.PENDING),
    "kept for ever": ([enrolled(3.0), later(9999), swept], Status.ENROLLED),
    "used in time": ([lasting(10), enrolled(3.0), later(9), verified, later(9)], Status.ENROLLED),
    "looked at in time": ([lasting(10), enrolled(3.0), later(9), looked_at, later(9)], Status.EXPIRED),
    "not used": ([lasting(10), enrolled(3.0), later(10)], Status.EXPIRED),
    "not used and swept": ([lasting(10), enrolled(3.0), later(11), swept], Status.EXPIRED),
    "pending by another version": ([enrolled(1.0, voice=SECOND)], Status.PENDING),
    "by a version that needed less": ([enrolled(1.0, voice=EASIER)], Status.STALE),
    "pending, not used": ([lasting(10), enrolled(1.0), later(10)], Status.PENDING),
    "pending, not used and swept": ([lasting(10), enrolled(1.0), later(11), swept], Status.PENDING),
    "pending by one version, expired": (
        [lasting(10), enrolled(9.0, voice=SECOND), enrolled(1.0), later(11)],
        Status.PENDING,
    ),
    "stale and not used": ([lasting(10), enrolled(3.0, voice=SECOND), later(11)], Status.EXPIRED),
    "stale and expired": ([lasting(10), enrolled(3.0, voice=SECOND), later(11), swept], Status.EXPIRED),
    "given longer in time": ([lasting(10), enrolled(3.0), later(9), lasting(20), later(9)], Status.ENROLLED),
    "given shorter": ([enrolled(3.0), later(9), lasting(5)], Status.EXPIRED),
    "kept for ever after all": ([lasting(10), enrolled(3.0), lasting(None), later(99), swept], Status.ENROLLED),
    "expired, begun anew": ([lasting(10), enrolled(3.0), later(11), enrolled(1.0)], Status.PENDING),
    "expired and swept, enrolled anew": (
        [lasting(10), enrolled(3.0), later(11), swept, enrolled(3.0)],
        Status.ENROLLED,
    ),
    "opted out unknown": ([opted_out], Status.OPTED_OUT),
    "opted out": ([enrolled(3.0), opted_out], Status.OPTED_OUT),
    "opted out twice": ([enrolled(3.0), opted_out, opted_out], Status.OPTED_OUT),
    "opted out and expired": ([lasting(10), enrolled(3.0), opted_out, later(11), swept], Status.OPTED_OUT),
    "opted out and deleted": ([enrolled(3.0), opted_out, deleted], Status.OPTED_OUT),
    "deleted and opted out": ([enrolled(3.0), deleted, opted_out], Status.OPTED_OUT),
    "opted in again": ([enrolled(3.0), opted_out, opted_in], Status.PENDING),
    "opted in, enrolled": ([opted_out, opted_in, enrolled(3.0)], Status.ENROLLED),
    "opted in unknown": ([opted_in], Status.PENDING),
    "deleted": ([enrolled(3.0), deleted], Status.PENDING),
    "deleted, begun anew": ([enrolled(3.0), deleted, enrolled(1.0)], Status.PENDING),
    "expired, deleted": ([lasting(10), enrolled(3.0), later(11), swept, deleted], Status.PENDING),
}


@pytest.mark.parametrize("name", JOURNEYS)
def test_where_every_way_leads(name: str, tmp_path: Path) -> None:
    steps, expected = JOURNEYS[name]
    world = world_of(tmp_path)
    for step in steps:
        step(world)
    found = world.again().look("acme", "ann")  # as another server sees it
    assert found.status(FIRST, world.clock()) is expected
    assert found.status(FIRST, world.clock()) in Status


@pytest.mark.parametrize("steps", [[opted_out], [enrolled(3.0), opted_out], [enrolled(3.0), opted_out, deleted]])
def test_who_has_opted_out_is_not_enrolled(steps: list[Step], tmp_path: Path) -> None:
    world = world_of(tmp_path)
    for step in steps:
        step(world)
    with pytest.raises(SpeakerOptedOut):
        world.enrol("ann", 3.0)
    assert not world.store.look("acme", "ann").enrolments


@pytest.mark.parametrize("text", ["a", "A" * 128, "0", "Ann_1.b-c", "identify2"])
def test_ids(text: str) -> None:
    assert require_speaker(text) == text


@pytest.mark.parametrize("text", ["", "A" * 129, ".a", "-a", "ann/b", "ann b", "änn", "identify", "jobs", "ann\n"])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no speaker's id"):
        require_speaker(text)
