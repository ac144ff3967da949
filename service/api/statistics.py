"""What each version was asked since the start, as the Open Inference Protocol tells it; for the event loop."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

MOST_VERSIONS: Final = 10_000  # that are remembered; those asked longest ago are forgotten


@dataclass(slots=True)
class Tally:
    """How often something took place, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class Asked:
    """One version's.

    Args:
        last_ms: when it was last asked, milliseconds since 1970.
        clips: that it answered.
        decoding: of the clips; `inference`: from there to the answer, the queue included.
    """

    last_ms: int = 0
    clips: int = 0
    success: Tally = field(default_factory=Tally)
    fail: Tally = field(default_factory=Tally)
    decoding: Tally = field(default_factory=Tally)
    inference: Tally = field(default_factory=Tally)


class Statistics:
    """By name and version."""

    def __init__(self) -> None:
        self._asked: OrderedDict[tuple[str, int], Asked] = OrderedDict()

    def of(self, name: str, version: int) -> Asked:
        """What is known of a version; nothing of one that was never asked."""
        return self._asked.get((name, version)) or Asked()

    def count(self, versions: Sequence[tuple[str, int]], clips: int, began: int, decoded: int, failed: bool) -> None:
        """Counts a request that ends now; `began` and `decoded` are of `time.perf_counter_ns`."""
        ended = time.perf_counter_ns()
        for key in versions:
            asked = self._asked.setdefault(key, Asked())
            self._asked.move_to_end(key)
            asked.last_ms = time.time_ns() // 1_000_000
            if failed:
                asked.fail.add(ended - began)
                continue
            asked.clips += clips
            asked.success.add(ended - began)
            asked.decoding.add(decoded - began)
            asked.inference.add(ended - decoded)
        while len(self._asked) > MOST_VERSIONS:
            self._asked.popitem(last=False)
