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
            asked = self._asked.get(key)
            if asked is None:
                asked = self._asked[key] = Asked()
                if len(self._asked) > MOST_VERSIONS:
                    self._asked.popitem(last=False)
            self._asked.move_to_end(key)
            asked.last_ms = time.time_ns() // 1_000_000
            took = [(asked.fail, ended - began)]
            if not failed:
                asked.clips += clips
                took = [(asked.success, ended - began), (asked.decoding, decoded - began)]
                took.append((asked.inference, ended - decoded))
            for tally, ns in took:
                tally.count += 1
                tally.ns += ns
