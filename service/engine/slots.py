"""Which adapter is in which slot, and who may be evicted: a pure data structure without torch, threads or a clock.

REGISTERED -> LOADING -> RESIDENT -> (evicted) REGISTERED, or FAILED with the reason. Running batches hold leases, so
nothing is evicted or replaced under them; pins keep an adapter until they are lifted.
"""

from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from service.engine.job import AdapterKey
from service.model.spec import NULL_SLOT

_LOOKED_AT = 64


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
    slot: int
    state: State = State.LOADING
    leases: int = 0
    served: bool = False  # whether a batch has used it since it was loaded
    doomed: bool = False  # to be evicted when the last lease ends


class Slots:
    """The slots 1 to `count` of the bank. Callers hold one lock around every call; none costs more for more slots."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.resident = 0
        self.evictions = 0  # so far
        self._free = list(range(count, NULL_SLOT, -1))
        self._occupants: dict[AdapterKey, _Occupant] = {}
        self._evictable: OrderedDict[AdapterKey, _Occupant] = OrderedDict()  # the least recently used first
        self._pins: set[AdapterKey] = set()
        self._pinned = 0  # of the occupants
        self._failures: dict[AdapterKey, str] = {}

    def state(self, key: AdapterKey) -> State:
        if key in self._failures:
            return State.FAILED
        occupant = self._occupants.get(key)
        return State.REGISTERED if occupant is None else occupant.state

    def failure(self, key: AdapterKey) -> str | None:
        """Why the adapter is FAILED, where it is."""
        return self._failures.get(key)

    def is_pinned(self, key: AdapterKey) -> bool:
        return key in self._pins

    def occupants(self) -> list[tuple[AdapterKey, State]]:
        """Who holds a slot, loaded or still loading."""
        return [(key, occupant.state) for key, occupant in self._occupants.items()]

    def known(self) -> set[AdapterKey]:
        """All whose state is not REGISTERED, or that are pinned."""
        return {*self._occupants, *self._failures, *self._pins}

    @property
    def all_pinned(self) -> bool:
        """Whether every slot holds a pinned adapter, so that waiting for one is vain."""
        return self._pinned == self.count

    def place(self, key: AdapterKey, waiting: Container[AdapterKey]) -> int | None:
        """Takes a slot for loading `key`, evicting the least recently used adapter that may go.

        Adapters in `waiting` have jobs queued and go only after they have served one batch since their own load, so
        that more hot adapters than slots take turns instead of evicting each other unread. Among the `_LOOKED_AT` least
        recently used, those that nobody waits for go first.

        Returns:
            The slot, or None while every slot is leased, pinned, loading or yet to serve.
        """
        self._failures.pop(key, None)
        if not self._free:
            victim = self._victim(waiting)
            if victim is None:
                return None
            self._vacate(victim)
            self.evictions += 1
        slot = self._free.pop()
        self._occupants[key] = _Occupant(slot)
        self._pinned += key in self._pins
        return slot

    def loaded(self, key: AdapterKey) -> None:
        """The slot of `key` holds its weights now."""
        occupant = self._occupants[key]
        occupant.state = State.RESIDENT
        self.resident += 1
        if occupant.doomed:
            self._vacate(key)
        else:
            self._rank(key, occupant)

    def failed(self, key: AdapterKey, reason: str, *, strands: bool = False) -> None:
        """Loading `key` did not work; its slot is free again, or after `recover` if it `strands`."""
        self._vacate(key)
        if strands:
            self._free.pop()
        self._failures[key] = reason

    def recover(self, slot: int) -> None:
        """A slot that was stranded can be used again."""
        self._free.append(slot)

    def lease(self, key: AdapterKey) -> int:
        """The slot of a RESIDENT adapter, which stays until `release`."""
        occupant = self._occupants[key]
        occupant.leases += 1
        self._evictable.pop(key, None)
        return occupant.slot

    def release(self, key: AdapterKey) -> None:
        occupant = self._occupants[key]
        occupant.leases -= 1
        occupant.served = True
        if occupant.doomed and not occupant.leases:
            self._vacate(key)
        else:
            self._rank(key, occupant)

    def pin(self, key: AdapterKey) -> None:
        """Keeps `key` from eviction, from now or from when it is loaded."""
        if key not in self._pins:
            self._pins.add(key)
            self._pinned += key in self._occupants
            self._evictable.pop(key, None)

    def unpin(self, key: AdapterKey) -> None:
        if key in self._pins:
            self._pins.remove(key)
            occupant = self._occupants.get(key)
            if occupant is not None:
                self._pinned -= 1
                self._rank(key, occupant)

    def unload(self, key: AdapterKey, waiting: Container[AdapterKey] = ()) -> None:
        """Evicts `key` as soon as nothing runs on it, and forgets its pin and its failure.

        Where it is in `waiting`, as in `place`, what is queued for it has its turn before.
        """
        self.unpin(key)
        self._failures.pop(key, None)
        occupant = self._occupants.get(key)
        if occupant is None:
            return
        if occupant.leases or occupant.state is State.LOADING or key in waiting:
            occupant.doomed = True
        else:
            self._vacate(key)

    def _victim(self, waiting: Container[AdapterKey]) -> AdapterKey | None:
        served = None
        for key, occupant in islice(self._evictable.items(), _LOOKED_AT):
            if key not in waiting:
                return key
            if served is None and occupant.served:
                served = key
        return served

    def _rank(self, key: AdapterKey, occupant: _Occupant) -> None:
        """Makes it the most recently used of those that may go, if it may."""
        if occupant.state is State.RESIDENT and not occupant.leases and key not in self._pins:
            self._evictable[key] = occupant
            self._evictable.move_to_end(key)

    def _vacate(self, key: AdapterKey) -> None:
        occupant = self._occupants.pop(key)
        self._evictable.pop(key, None)
        self._pinned -= key in self._pins
        self.resident -= occupant.state is State.RESIDENT
        self._free.append(occupant.slot)
