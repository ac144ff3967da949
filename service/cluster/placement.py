"""On which of many an adapter's requests run: consistent hashing of its name with bounded load.

The name's successor on a ring (Karger et al., STOC 1997) that has less than 1.25 times the mean in flight (Mirrokni,
Thorup, Zadimoghaddam, SODA 2018); docs/OPERATIONS.md has what it was chosen among.
"""

import hashlib
from bisect import bisect
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

POINTS = 64  # of one of them on the ring
BOUND = 1.25  # times the mean in flight
_KEPT = 65_536  # names whose successors are remembered

R = TypeVar("R", bound=Hashable)


class Ring(Generic[R]):
    """Those whom an adapter's name meets, in that order.

    Args:
        replicas: by names that stay theirs; a name's points do not depend on the others.
    """

    def __init__(self, replicas: dict[str, R]) -> None:
        points = sorted((_hash(f"{name}/{i}"), name) for name in replicas for i in range(POINTS))
        self._hashes = [point for point, _ in points]
        self._owners = [replicas[name] for _, name in points]
        self._found: dict[str, list[R]] = {}

    def successors(self, name: str) -> Sequence[R]:
        """All of them, the adapter's own first."""
        found = self._found.get(name)
        if found is None:
            if len(self._found) >= _KEPT:
                self._found.clear()
            at = bisect(self._hashes, _hash(name))
            found = self._found[name] = list(dict.fromkeys(self._owners[at:] + self._owners[:at]))
        return found

    def ranked(self, name: str, in_flight: Callable[[R], int]) -> list[R]:
        """`successors`, those first that one request more keeps within the bound."""
        order = self.successors(name)
        held = [in_flight(one) for one in order]
        most = bound(sum(held), len(held))
        within = [one for one, count in zip(order, held, strict=True) if count < most]
        return within + [one for one, count in zip(order, held, strict=True) if count >= most]


def bound(total: int, count: int) -> float:
    """In flight at one of `count`, that one more should not pass, where all have `total`."""
    return max(1.0, BOUND * (total + 1) / max(1, count))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
