"""Who may still queue: the queue's room, shared between flows. Pure, without torch, threads or a clock of its own.

Dynamic thresholds (Choudhury, Hahne, "Dynamic queue length thresholds for shared-memory packet switches", IEEE/ACM
Transactions on Networking 6(2), 1998, with alpha = 1): a flow may hold as much as is free at the moment. One flow alone
thus takes half of the queue and leaves the other half, k greedy ones take 1 / (k + 1) each and leave as much, and
nobody who holds less than what is free is ever refused. Nothing is configured, and nothing admitted is thrown out.
"""

import math
from collections.abc import Mapping

from service.engine.job import FRAME_SECONDS
from service.engine.pace import Pace
from service.errors import Overloaded, PayloadTooLarge

_RETRY_SECONDS = (1.0, 60.0)  # bounds of what a refused request is told to wait


class Room:
    """Window-frames of the queue, and which flow holds how many of them.

    Args:
        frames: most that all flows together may hold.
        pace: of the device that drains the queue.
    """

    def __init__(self, frames: int, pace: Pace) -> None:
        self.frames = frames
        self.held = 0
        self._pace = pace
        self._held_by: dict[str, int] = {}

    def held_by(self, flow: str) -> int:
        return self._held_by.get(flow, 0)

    def check(self, wanted: Mapping[str, int]) -> None:
        """Whether a request may take so many window-frames of each flow; all of it or nothing.

        Raises:
            PayloadTooLarge: more than the whole queue holds.
            Overloaded: the queue, or a flow's share of it, is full now; carries when to try again.
        """
        total = sum(wanted.values())
        if total > self.frames:
            raise PayloadTooLarge(
                f"the request asks for {_seconds(total)} of windows (windows x adapters); the queue holds "
                f"{_seconds(self.frames)}: send fewer clips, adapters or windows"
            )
        free = self.frames - self.held
        if total > free:
            raise Overloaded(
                f"{_seconds(self.held)} of windows are queued, and {_seconds(self.frames)} fit; try again later",
                retry_after=self._drains_in(self.held),
            )
        for flow, frames in wanted.items():
            held = self.held_by(flow)
            if held and held + frames > free:
                raise Overloaded(
                    f"{_seconds(held)} of windows are queued for adapter {flow}, and one adapter may hold no more than "
                    f"is free, {_seconds(free)}; try again later",
                    retry_after=self._drains_in(min(self.held, held * len(self._held_by))),
                    adapter=flow,
                )

    def take(self, wanted: Mapping[str, int]) -> None:
        """Takes what `check` lets a request take; raises as it does."""
        self.check(wanted)
        self.held += sum(wanted.values())
        for flow, frames in wanted.items():
            self._held_by[flow] = self.held_by(flow) + frames

    def give_back(self, flow: str, frames: int) -> None:
        self.held -= frames
        left = self.held_by(flow) - frames
        if left:
            self._held_by[flow] = left
        else:
            self._held_by.pop(flow, None)

    def _drains_in(self, frames: int) -> float:
        least, most = _RETRY_SECONDS
        rate = self._pace.rate
        return min(most, max(least, math.ceil(frames / rate))) if rate else least


def _seconds(frames: int) -> str:
    return f"{frames * FRAME_SECONDS:.0f} s"
