"""The queue's room: dynamic thresholds between flows, with the bounds that they promise."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.cost import Pace
from service.engine.room import Room
from service.errors import Overloaded, PayloadTooLarge


def fill(room: Room, flow: str, frames: int = 1) -> int:
    """Takes until it is refused; how much it got."""
    while True:
        try:
            room.take({flow: frames})
        except Overloaded:
            return room.held_by[flow]


def test_one_flow_leaves_half_for_the_others() -> None:
    room = Room(1000, lambda: 0.0)
    assert fill(room, "greedy") == 500
    with pytest.raises(Overloaded) as refused:
        room.take({"greedy": 1})
    assert refused.value.adapter == "greedy"
    assert fill(room, "second") == 250
    room.take({"quiet": 250})  # all that is left: who holds nothing is refused only by a full queue
    with pytest.raises(Overloaded, match=r"10 s of windows are queued, and 10 s fit"):
        room.take({"another": 1})


def test_equally_greedy_flows_get_equal_shares() -> None:
    room = Room(1000, lambda: 0.0)
    flows = [f"greedy-{i}" for i in range(4)]
    for _ in range(1000):
        for flow in flows:
            with suppress(Overloaded):
                room.take({flow: 1})
    assert {room.held_by[flow] for flow in flows} == {200}  # a fifth each, and a fifth free


def test_an_empty_queue_takes_what_fits_it() -> None:
    room = Room(1000, lambda: 0.0)
    room.take({"a": 1000})
    room.give_back({"a": 1000})
    with pytest.raises(PayloadTooLarge, match=r"asks for 10 s of windows .*; the queue holds 10 s"):
        room.take({"a": 600, "b": 401})
    assert room.held == 0


def test_a_request_of_several_adapters_is_taken_whole_or_not_at_all() -> None:
    room = Room(1000, lambda: 0.0)
    fill(room, "busy")
    with pytest.raises(Overloaded, match="adapter busy"):
        room.take({"quiet": 10, "busy": 10})
    assert room.held_by["quiet"] == 0
    room.take({"quiet": 10, "other": 10})
    assert room.held == 520


def test_refusals_say_when_to_come_back() -> None:
    pace = Pace()
    room = Room(1000, lambda: pace.rate)
    fill(room, "greedy")
    assert refusal(room, {"greedy": 1}) == 1.0  # nothing is known of the device yet
    pace.observe(frames=100, seconds=1.0)
    assert refusal(room, {"greedy": 1}) == 5.0  # 500 frames at 100 a second
    room.take({"other": 100})
    assert refusal(room, {"greedy": 1}) == 6.0  # it has half of the device at least, and 600 frames are all there is
    assert refusal(room, {"third": 401}) == 6.0
    pace.observe(frames=1, seconds=1000.0)
    assert refusal(room, {"greedy": 1}) == 60.0


def refusal(room: Room, wanted: dict[str, int]) -> float | None:
    with pytest.raises(Overloaded) as refused:
        room.take(wanted)
    return refused.value.retry_after


requests = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 200), min_size=1, max_size=3)


@given(st.lists(st.tuples(requests, st.booleans()), max_size=60))
def test_nothing_is_lost_and_the_threshold_holds(steps: list[tuple[dict[str, int], bool]]) -> None:
    room = Room(1000, lambda: 0.0)
    held: list[dict[str, int]] = []
    for wanted, gives_back in steps:
        free = room.frames - room.held
        fits = sum(wanted.values()) <= free and all(
            room.held_by[flow] == 0 or room.held_by[flow] + frames <= free for flow, frames in wanted.items()
        )
        try:
            room.take(wanted)
        except Overloaded:
            assert not fits
        else:
            assert fits
            held.append(wanted)
        if gives_back and held:
            room.give_back(held.pop(0))
        assert room.held == sum(sum(one.values()) for one in held) <= room.frames
        for flow in "abcd":
            assert room.held_by[flow] == sum(one.get(flow, 0) for one in held)
