"""Speakers in a database: nothing lost, nothing back, nobody else's; the same in SQLite and PostgreSQL."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select

from service.attempts import Attempt
from service.database import Database, open_database
from service.errors import (
    Conflict,
    ConsentRequired,
    Internal,
    InvalidRequest,
    NotReady,
    ServiceError,
    UnknownSpeaker,
)
from service.speakers.journal import By
from service.speakers.speaker import Consent
from service.speakers.store import MAX_ENROLMENTS, Terms
from service.speakers.tables import enrolments, keys, metadata, uses
from tests.speakers.world import ACME, FIRST, KEYS, OTHER, SECOND, World, told, vector_of

OLD, NEW = KEYS
ELSEWHERE = By("other", "somebody else")


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "sqlite":
        database = open_database(tmp_path)
    else:
        database = Database(request.getfixturevalue("postgres_url"))
    yield World(database)
    database.close()


@pytest.fixture
def on_disk(tmp_path: Path) -> World:
    return World(open_database(tmp_path))


def count(world: World, table: str) -> int:
    with world.database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(metadata.tables[table])) or 0)


def test_the_domain_is_in_every_primary_key() -> None:
    for table in metadata.sorted_tables:
        if table is not keys:  # ids of the service's own keys
            assert "domain" in {column.name for column in table.primary_key}


def test_every_enrolment_keeps_its_own_vector(world: World) -> None:
    world.enrol("ann", 2.0, 1.5)
    world.enrol("ann", 4.0, voice=SECOND)
    speaker, vectors, _ = world.again().export(ACME, "ann")
    assert [(one.id, one.version, one.speech_seconds) for one in speaker.enrolments] == [
        (1, 1, 2.0),
        (2, 1, 1.5),
        (3, 2, 4.0),
    ]
    for number, clip in ((1, 0), (2, 1), (3, 0)):
        np.testing.assert_array_equal(vectors[number], vector_of("ann", clip))
    references = world.store.judge(ACME, "ann", FIRST, lambda speaker, found: (found, "accept"))
    assert [reference.speech_seconds for reference in references] == [2.0, 1.5]


def test_one_domain_knows_nothing_of_another(world: World) -> None:
    world.enrol("ann", 3.0)
    world.store.opt_out(ELSEWHERE, "ann", told)
    assert len(world.store.look("acme", "ann").enrolments) == 1
    world.store.delete(ELSEWHERE, "ann")
    world.store.opt_in(ELSEWHERE, "ann", told)
    assert [one.id for one in world.store.walk("acme")] == ["ann"]
    assert list(world.store.walk("other")) == []
    for call in (world.store.delete, world.store.export):
        with pytest.raises(UnknownSpeaker):
            call(ELSEWHERE, "ann")
    with pytest.raises(UnknownSpeaker):
        world.store.delete_enrolment(ELSEWHERE, "ann", 1)


def test_deletion_takes_everything_but_the_opt_out(world: World) -> None:
    world.store.put(ACME, "ann", {"consent": Consent("Jo", world.clock(), "yes")}, told)
    world.enrol("ann", 3.0)
    world.store.opt_out(ACME, "bob", told)
    for name in ("ann", "bob"):
        world.store.delete(ACME, name)
    assert [count(world, name) for name in ("speakers", "enrolments", "opt_outs")] == [0, 0, 1]
    with world.database.read() as connection:
        named = set(connection.scalars(select(uses.c.speaker)))
    assert "ann" not in named
    assert len(named) == 2  # two hashes: who knows an id finds what was done
    world.enrol("ann", 3.0)
    assert [use.action for use in world.store.export(ACME, "ann")[2]] == ["put", "enrol", "delete", "enrol", "export"]


def test_an_enrolment_under_way_does_not_bring_back_who_was_deleted(world: World) -> None:
    nobody = world.store.removals("acme", "ann")
    world.enrol("ann", 3.0)
    known = world.store.removals("acme", "ann")
    world.store.delete(ACME, "ann")
    for before in (nobody, known):
        with pytest.raises(Conflict):
            world.enrol("ann", 3.0, removals=before)
    assert not world.store.look("acme", "ann").is_known
    world.enrol("ann", 3.0)  # a new person of that id
    for before in (nobody, known):
        with pytest.raises(Conflict):
            world.enrol("ann", 3.0, removals=before)
    assert len(world.store.look("acme", "ann").enrolments) == 1


def test_an_enrolment_from_before_an_opt_out_does_not_outlast_it(world: World) -> None:
    world.enrol("ann", 3.0)
    before = world.store.removals("acme", "ann")
    world.store.opt_out(ACME, "ann", told)
    world.store.opt_in(ACME, "ann", told)
    with pytest.raises(Conflict):
        world.enrol("ann", 3.0, removals=before)
    assert not world.store.look("acme", "ann").enrolments


def test_first_enrolments_at_the_same_time_are_both_kept(world: World) -> None:
    before = world.store.removals("acme", "ann")
    for _ in range(2):
        world.enrol("ann", 3.0, removals=before)
    assert len(world.store.look("acme", "ann").enrolments) == 2


def test_asking_for_an_unknown_id_leaves_no_trace(world: World) -> None:
    world.enrol("ann", 3.0)
    world.store.delete(ACME, "ann")
    rows = count(world, "speaker_uses")
    world.store.judge(ACME, "ann", FIRST, lambda speaker, found: (None, "speaker_not_enrolled"))
    world.enrol("ann", 0.0)
    world.store.opt_in(ACME, "ann", told)
    assert count(world, "speaker_uses") == rows


def test_a_speaker_has_so_many_enrolments(world: World) -> None:
    world.enrol("ann", *[1.0] * MAX_ENROLMENTS)
    with pytest.raises(InvalidRequest, match="at most"):
        world.enrol("ann", 1.0)
    assert count(world, "enrolments") == MAX_ENROLMENTS


def test_consent_is_asked_for(world: World) -> None:
    with pytest.raises(ConsentRequired):
        world.enrol("ann", 3.0, needs_consent=True)
    world.store.put(ACME, "ann", {"consent": Consent("Jo", world.clock(), "yes")}, told)
    assert world.enrol("ann", 3.0, needs_consent=True).consent == Consent("Jo", world.clock(), "yes")


def test_an_attempt_is_made_once(world: World) -> None:
    attempt = Attempt.of("key", b"enrol", b"clip")
    terms = Terms(attempt=attempt)
    world.enrol("ann", 3.0, terms=terms)
    world.enrol("ann", 3.0, terms=terms)
    assert len(world.store.look("acme", "ann").enrolments) == 1
    assert world.again().recall(ACME, attempt) == ("ann 3", True)
    assert world.store.recall(ELSEWHERE, attempt) is None
    with pytest.raises(InvalidRequest, match="another call"):
        world.store.recall(ACME, Attempt.of("key", b"enrol", b"another clip"))
    world.store.delete(ACME, "ann")
    with pytest.raises(Conflict):
        world.enrol("ann", 3.0, terms=terms)
    world.clock.pass_by(days=7)
    world.enrol("ann", 3.0, terms=terms)
    assert len(world.store.look("acme", "ann").enrolments) == 1


def test_everybody_at_once_is_one_after_another(world: World) -> None:
    names = ("ann", "bob")
    refused: list[ServiceError] = []
    barrier = threading.Barrier(8)

    def act(at: int) -> None:
        barrier.wait()
        for step in range(6):
            name = names[(at + step) % 2]
            try:
                if (at + step) % 3 < 2:
                    world.enrol(name, 1.0, removals=world.store.removals("acme", name))
                else:
                    world.store.delete(ACME, name)
            except (Conflict, UnknownSpeaker) as error:
                refused.append(error)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(8)))
    for name in names:
        found = world.store.look("acme", name)
        assert [one.id for one in found.enrolments] == list(range(1, len(found.enrolments) + 1))
        assert len(world.store.export(ACME, name)[1] if found.created else {}) == len(found.enrolments)
    done = 8 * 6 - len(refused)
    assert count(world, "speaker_uses") >= done


def test_what_is_not_used_expires_and_says_so(world: World) -> None:
    world.store.put(ACME, "ann", {"lifetime": timedelta(days=10)}, told)
    world.enrol("ann", 3.0)
    world.enrol("bob", 3.0)
    world.clock.pass_by(days=11)
    world.store.sweep(timedelta(days=365))
    assert count(world, "enrolments") == 1
    assert [use.action for use in world.store.export(ACME, "ann")[2]] == ["put", "enrol", "expire", "export"]
    assert world.store.export(ACME, "ann")[2][2].actor == "server"


def test_a_longer_life_does_not_bring_back_who_has_expired(world: World) -> None:
    world.store.put(ACME, "ann", {"lifetime": timedelta(days=10)}, told)
    world.enrol("ann", 3.0)
    world.clock.pass_by(days=11)
    world.store.put(ACME, "ann", {"lifetime": timedelta(days=365)}, told)
    assert count(world, "enrolments") == 0
    assert world.store.find("acme", "ann").has_expired(world.store.now())


def test_uses_are_kept_for_so_long(world: World) -> None:
    world.enrol("ann", 3.0)
    world.clock.pass_by(days=20)
    world.enrol("ann", 3.0)
    world.store.sweep(timedelta(days=30))
    assert count(world, "speaker_uses") == 2
    world.clock.pass_by(days=11)
    world.store.sweep(timedelta(days=30))
    assert count(world, "speaker_uses") == 1
    assert count(world, "enrolments") == 2


def test_rows_are_rewritten_under_a_new_key(world: World) -> None:
    for name in ("ann", "bob"):
        world.enrol(name, 3.0, 1.0)
    with pytest.raises(Internal, match="no key"):
        world.again(NEW).export(ACME, "ann")
    assert world.again(NEW, OLD).rewrite() == 4
    assert world.again(NEW, OLD).rewrite() == 0
    for name in ("ann", "bob"):
        vectors = world.again(NEW).export(ACME, name)[1]
        np.testing.assert_array_equal(vectors[1], vector_of(name))
    with pytest.raises(Internal, match="no key"):
        world.again(OLD).export(ACME, "ann")
    with world.database.read() as connection:
        assert len(set(connection.scalars(select(enrolments.c.key_id)))) == 1


def test_servers_with_keys_of_their_own_do_not_part_the_speakers(world: World) -> None:
    world.enrol("ann", 3.0)
    stranger = world.again(NEW)
    with pytest.raises(NotReady, match="voiceprint-key-file"):
        stranger.rewrite()
    world.store = stranger
    with pytest.raises(NotReady, match="voiceprint-key-file"):
        world.enrol("bob", 3.0)
    assert count(world, "enrolments") == 1


def test_ids_come_in_one_order(world: World) -> None:
    names = ["b", "a", "B", "a.1", "a_1", "a-1", "1", "Z9", "z"]
    for name in names:
        world.store.put(ACME, name, {}, told)
    world.store.opt_out(ACME, "only-out", told)
    whole = [one.id for one in world.store.walk("acme")]
    assert sorted(whole) == sorted([*names, "only-out"])
    for at, name in enumerate(whole):
        assert [one.id for one in world.store.walk("acme", name)] == whole[at + 1 :]


# The files of SQLite


def test_the_words_of_a_consent_go_with_it(on_disk: World, tmp_path: Path) -> None:
    on_disk.store.put(ACME, "ann", {"consent": Consent("Jo", on_disk.clock(), "her very own words")}, told)
    assert holds(tmp_path, b"her very own words")
    on_disk.store.put(ACME, "ann", {"consent": None}, told)
    assert not holds(tmp_path, b"her very own words")


def holds(directory: Path, needle: bytes) -> bool:
    return any(needle in path.read_bytes() for path in directory.iterdir())


def stored(world: World, name: str) -> list[bytes]:
    """What lies encrypted in a speaker's rows."""
    with world.database.read() as connection:
        found = connection.execute(select(enrolments).where(enrolments.c.speaker == name)).all()
    return [bytes(value) for row in found for value in (row.vector, row.wrapped_key)]


@pytest.mark.parametrize("how", ["delete", "delete_enrolment", "opt_out", "expire", "expire by enrol", "expire by put"])
def test_what_is_deleted_leaves_no_page(on_disk: World, tmp_path: Path, how: str) -> None:
    on_disk.enrol("keeper", 3.0)
    on_disk.store.put(ACME, "goner", {"lifetime": timedelta(days=1)}, told)
    on_disk.enrol("goner", 3.0)
    needles = stored(on_disk, "goner")
    assert len(needles) == 2
    assert all(holds(tmp_path, needle) for needle in needles)
    assert not holds(tmp_path, vector_of("goner").tobytes())
    match how:
        case "delete":
            on_disk.store.delete(ACME, "goner")
            assert not holds(tmp_path, b"goner")
        case "delete_enrolment":
            on_disk.store.delete_enrolment(ACME, "goner", 1)
        case "opt_out":
            on_disk.store.opt_out(ACME, "goner", told)
        case "expire":
            on_disk.clock.pass_by(days=2)
            on_disk.store.sweep(timedelta(days=365))
        case "expire by enrol":
            on_disk.clock.pass_by(days=2)
            on_disk.enrol("goner", 3.0)
        case "expire by put":
            on_disk.clock.pass_by(days=2)
            on_disk.store.put(ACME, "goner", {"lifetime": timedelta(days=9)}, told)
    assert not any(holds(tmp_path, needle) for needle in needles)
    assert all(holds(tmp_path, needle) for needle in stored(on_disk, "keeper"))


def test_what_a_reader_holds_on_to_goes_with_the_next_sweep(on_disk: World, tmp_path: Path) -> None:
    on_disk.enrol("goner", 3.0)
    needles = stored(on_disk, "goner")
    with on_disk.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(enrolments)) == 1
        on_disk.store.delete(ACME, "goner")
        assert any(holds(tmp_path, needle) for needle in needles)
    on_disk.store.sweep(timedelta(days=365))
    assert not any(holds(tmp_path, needle) for needle in needles)


def test_a_new_process_removes_what_a_killed_one_left(on_disk: World, tmp_path: Path) -> None:
    on_disk.enrol("goner", 3.0)
    needles = stored(on_disk, "goner")
    with on_disk.database.write() as connection:  # as a deletion that was killed after its commit
        connection.execute(enrolments.delete())
    assert any(holds(tmp_path, needle) for needle in needles)
    on_disk.again().sweep(timedelta(days=365))
    assert not any(holds(tmp_path, needle) for needle in needles)


def test_another_adapter_has_references_of_its_own(on_disk: World) -> None:
    on_disk.enrol("ann", 3.0)
    assert on_disk.store.judge(ACME, "ann", OTHER, lambda speaker, found: (found, "x")) == []
