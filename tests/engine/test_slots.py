"""Residency as a table: LRU among the unleased, pins, leases, turns for more adapters than slots."""

import time

import pytest

from service.engine.job import AdapterKey
from service.engine.slots import Slots, State

A, B, C = ("a", 1), ("b", 1), ("c", 1)


def resident(*keys: AdapterKey, count: int = 2) -> Slots:
    slots = Slots(count)
    for key in keys:
        assert slots.place(key, ()) is not None
        slots.loaded(key)
    return slots


def serve(slots: Slots, key: AdapterKey) -> None:
    slots.lease(key)
    slots.release(key)


def test_states() -> None:
    slots = Slots(1)
    assert slots.state(A) is State.REGISTERED
    assert slots.place(A, ()) == 1
    assert slots.state(A) is State.LOADING
    slots.failed(A, "damaged")
    assert (slots.state(A), slots.failure(A)) == (State.FAILED, "damaged")
    assert slots.place(A, ()) == 1
    slots.loaded(A)
    assert (slots.state(A), slots.failure(A), slots.resident) == (State.RESIDENT, None, 1)


def test_the_least_recently_used_goes() -> None:
    slots = resident(A, B)
    serve(slots, A)
    assert slots.place(C, ()) is not None
    assert (slots.state(A), slots.state(B)) == (State.RESIDENT, State.REGISTERED)


def test_leased_and_pinned_stay() -> None:
    slots = resident(A, B)
    slots.lease(A)
    slots.pin(B)
    assert slots.place(C, ()) is None
    assert not slots.all_pinned
    slots.release(A)
    slots.pin(A)
    assert slots.all_pinned
    slots.unpin(A)
    assert slots.place(C, ()) is not None
    assert slots.state(A) is State.REGISTERED


def test_waited_for_adapters_serve_before_they_go() -> None:
    slots = resident(A, B)
    waiting = {A, B, C}
    assert slots.place(C, waiting) is None  # both would be evicted unread
    serve(slots, B)
    assert slots.place(C, waiting) is not None
    assert (slots.state(A), slots.state(B)) == (State.RESIDENT, State.REGISTERED)


def test_those_nobody_waits_for_go_first() -> None:
    slots = resident(A, B)
    serve(slots, A)
    serve(slots, B)
    assert slots.place(C, {A}) is not None
    assert (slots.state(A), slots.state(B)) == (State.RESIDENT, State.REGISTERED)


@pytest.mark.parametrize("leases", [0, 1, 2])
def test_unloading_waits_for_leases(leases: int) -> None:
    slots = resident(A)
    slots.pin(A)
    for _ in range(leases):
        slots.lease(A)
    slots.unload(A)
    for _ in range(leases):
        assert slots.state(A) is State.RESIDENT
        slots.release(A)
    assert slots.state(A) is State.REGISTERED


def test_unloading_what_is_waited_for_lets_it_serve_once() -> None:
    slots = resident(A)
    slots.unload(A, waiting={A})
    assert slots.state(A) is State.RESIDENT
    serve(slots, A)
    assert slots.state(A) is State.REGISTERED
    assert slots.resident == 0


def test_what_is_to_serve_once_more_goes_for_others_when_nobody_waits_for_it_any_more() -> None:
    slots = resident(A, count=1)
    slots.unload(A, waiting={A})
    assert slots.place(B, {A}) is None
    assert slots.place(B, ()) == 1


def test_unloading_while_loading_takes_effect_after() -> None:
    slots = Slots(1)
    slots.place(A, ())
    slots.unload(A)
    slots.loaded(A)
    assert slots.state(A) is State.REGISTERED
    assert slots.place(B, ()) == 1


def test_a_slot_whose_load_hangs_on_the_device_is_nobodys_until_it_is_recovered() -> None:
    slots = Slots(1)
    slots.place(A, ())
    slots.failed(A, "hangs", strands=True)
    assert slots.place(B, ()) is None
    slots.recover(1)
    assert slots.place(B, ()) == 1


def test_pins_are_counted_wherever_they_come_and_go() -> None:
    slots = Slots(1)
    slots.pin(A)
    assert not slots.all_pinned
    slots.place(A, ())
    assert slots.all_pinned
    slots.loaded(A)
    slots.pin(A)
    slots.unload(A)
    assert not slots.all_pinned
    assert slots.place(B, ()) == 1
    slots.loaded(B)
    slots.pin(B)
    assert slots.all_pinned
    slots.unpin(B)
    assert not slots.all_pinned
    assert slots.place(C, ()) == 1


@pytest.mark.parametrize("waited_for", [False, True])
def test_placing_costs_the_same_whatever_the_number_of_slots(waited_for: bool) -> None:
    keys = [(f"adapter-{i}", 1) for i in range(20_000)]
    slots = resident(*keys, count=len(keys))
    waiting = set(keys) if waited_for else set()
    best = 1.0
    for i in range(20):
        started = time.thread_time()
        slots.place((f"new-{i}", 1), waiting)
        assert not slots.all_pinned
        assert slots.resident
        best = min(best, time.thread_time() - started)
    assert best < 0.0005  # a look at every slot takes milliseconds
