"""Which adapter is in which slot, and who may be evicted: a pure data structure without torch, threads or a clock.

REGISTERED -> LOADING -> RESIDENT -> (evicted) REGISTERED, or FAILED with the reason. Running batches hold leases, so
nothing is evicted or replaced under them; pins keep an adapter until they are lifted.
"""

from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum

from service.engine.job import AdapterKey
from service.model.spec import NULL_SLOT


class State(StrEnum):
    REGISTERED = "registered"
    LOADING = "loading"
    RESIDENT = "resident"
    FAILED = "failed"


class Tier(StrEnum):
    """Where an adapter's weights are, the nearest place to the device."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Residence:
    """Where an adapter is at a moment.

    Args:
        failure: why its last load failed, where its state is FAILED.
    """

    state: State
    tier: Tier
    is_pinned: bool
    failure: str | None


@dataclass(slots=True)
class _Occupant:
    key: AdapterKey
    state: State = State.LOADING
    leases: int = 0
    served: bool = False  # whether a batch has used it since it was loaded
    doomed: bool = False  # to be evicted when the last lease ends
    last_used: int = 0


class Slots:
    """The slots 1 to `count` of the bank. Callers hold one lock around every call."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count, NULL_SLOT, -1))
        self._occupants: dict[int, _Occupant] = {}
        self._slot_of: dict[AdapterKey, int] = {}
        self._failures: dict[AdapterKey, str] = {}
        self._pins: set[AdapterKey] = set()
        self._uses = 0

    def state(self, key: AdapterKey) -> State:
        if key in self._failures:
            return State.FAILED
        slot = self._slot_of.get(key)
        return State.REGISTERED if slot is None else self._occupants[slot].state

    def failure(self, key: AdapterKey) -> str | None:
        """Why the adapter is FAILED, where it is."""
        return self._failures.get(key)

    def is_pinned(self, key: AdapterKey) -> bool:
        return key in self._pins

    @property
    def resident(self) -> int:
        return sum(occupant.state is State.RESIDENT for occupant in self._occupants.values())

    @property
    def all_pinned(self) -> bool:
        """Whether every slot holds a pinned adapter, so that waiting for one is vain."""
        return not self._free and all(occupant.key in self._pins for occupant in self._occupants.values())

    def place(self, key: AdapterKey, waiting: Container[AdapterKey]) -> int | None:
        """Takes a slot for loading `key`, evicting the least recently used adapter that may go.

        Adapters in `waiting` have jobs queued and go only after they have served one batch since their own load, so
        that more hot adapters than slots take turns instead of evicting each other unread.

        Returns:
            The slot, or None while every slot is leased, pinned, loading or yet to serve.
        """
        self._failures.pop(key, None)
        if self._free:
            slot = self._free.pop()
        else:
            candidates = [
                (occupant.key in waiting, occupant.last_used, slot)
                for slot, occupant in self._occupants.items()
                if self._evictable(occupant) and (occupant.served or occupant.key not in waiting)
            ]
            if not candidates:
                return None
            slot = min(candidates)[2]
            del self._slot_of[self._occupants[slot].key]
        self._occupants[slot] = _Occupant(key)
        self._slot_of[key] = slot
        return slot

    def loaded(self, key: AdapterKey) -> None:
        """The slot of `key` holds its weights now."""
        occupant = self._occupants[self._slot_of[key]]
        occupant.state = State.RESIDENT
        self._touch(occupant)
        if occupant.doomed:
            self._vacate(key)

    def failed(self, key: AdapterKey, reason: str) -> None:
        """Loading `key` did not work; its slot is free again."""
        self._vacate(key)
        self._failures[key] = reason

    def lease(self, key: AdapterKey) -> int:
        """The slot of a RESIDENT adapter, which stays until `release`."""
        slot = self._slot_of[key]
        occupant = self._occupants[slot]
        occupant.leases += 1
        self._touch(occupant)
        return slot

    def release(self, key: AdapterKey) -> None:
        occupant = self._occupants[self._slot_of[key]]
        occupant.leases -= 1
        occupant.served = True
        if occupant.doomed and not occupant.leases:
            self._vacate(key)

    def pin(self, key: AdapterKey) -> None:
        """Keeps `key` from eviction, from now or from when it is loaded."""
        self._pins.add(key)

    def unpin(self, key: AdapterKey) -> None:
        self._pins.discard(key)

    def unload(self, key: AdapterKey) -> None:
        """Evicts `key` as soon as nothing runs on it, and forgets its pin and its failure."""
        self._pins.discard(key)
        self._failures.pop(key, None)
        slot = self._slot_of.get(key)
        if slot is None:
            return
        occupant = self._occupants[slot]
        if occupant.leases or occupant.state is State.LOADING:
            occupant.doomed = True
        else:
            self._vacate(key)

    def _evictable(self, occupant: _Occupant) -> bool:
        return occupant.state is State.RESIDENT and not occupant.leases and occupant.key not in self._pins

    def _touch(self, occupant: _Occupant) -> None:
        self._uses += 1
        occupant.last_used = self._uses

    def _vacate(self, key: AdapterKey) -> None:
        slot = self._slot_of.pop(key)
        del self._occupants[slot]
        self._free.append(slot)
