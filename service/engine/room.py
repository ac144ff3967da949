"""Who may still queue: the queue's room, shared between flows. Pure, without torch or a clock of its own.

Dynamic thresholds (Choudhury, Hahne, "Dynamic queue length thresholds for shared-memory packet switches", IEEE/ACM
Transactions on Networking 6(2), 1998, with alpha = 1): a flow may hold as much as is free at the moment. One flow alone
thus takes half of the queue and leaves the other half, k greedy ones take 1 / (k + 1) each and leave as much, and
nobody who holds less than what is free is ever refused. Nothing is configured, and nothing admitted is thrown out.
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping

from service.engine.job import FRAME_SECONDS
from service.errors import Overloaded, PayloadTooLarge

_RETRY_SECONDS = (1.0, 60.0)  # bounds of what a refused request is told to wait


class Room:
    """Window-frames of requests from their admission to their answers, and which flow holds how many. Thread-safe.

    Args:
        frames: most that all flows together may hold.
        rate: how many the device answers a second at the moment; 0 where that is not known.

    Attributes:
        held, held_by: how many are held, and by which flow; no zeros.
    """

    def __init__(self, frames: int, rate: Callable[[], float]) -> None:
        self.frames = frames
        self.held = 0
        self._rate = rate
        self.held_by: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, wanted: Mapping[str, int]) -> None:
        """Takes so many window-frames of each flow; all of it or nothing.

        Raises:
            PayloadTooLarge: more than the whole queue holds.
            Overloaded: the queue, or a flow's share of it, is full now; carries when to try again.
        """
        total = sum(wanted.values())
        with self._lock:
            free = self.frames - self.held
            if total > free:
                self._refuse(total)
            for flow, frames in wanted.items():
                held = self.held_by[flow]
                if held and held + frames > free:
                    raise Overloaded(
                        f"{_seconds(held)} of windows are queued for adapter {flow}, and one adapter may hold no more "
                        f"than is free, {_seconds(free)}; try again later",
                        retry_after=self._drains_in(min(self.held, held * len(self.held_by))),
                        adapter=flow,
                    )
            self.held += total
            self.held_by.update(wanted)

    def give_back(self, held: Mapping[str, int]) -> None:
        """Gives back what was taken."""
        with self._lock:
            for flow, frames in held.items():
                self.held -= frames
                self.held_by[flow] -= frames
                if not self.held_by[flow]:
                    del self.held_by[flow]

    def _refuse(self, total: int) -> None:
        if total > self.frames:
            raise PayloadTooLarge(
                f"the request asks for {_seconds(total)} of windows (windows x adapters); the queue holds "
                f"{_seconds(self.frames)}: send fewer clips, adapters or windows"
            )
        raise Overloaded(
            f"{_seconds(self.held)} of windows are queued, and {_seconds(self.frames)} fit; try again later",
            retry_after=self._drains_in(self.held),
        )

    def _drains_in(self, frames: int) -> float:
        least, most = _RETRY_SECONDS
        rate = self._rate()
        return min(most, max(least, math.ceil(frames / rate))) if rate else least


def _seconds(frames: int) -> str:
    return f"{frames * FRAME_SECONDS:.0f} s"
