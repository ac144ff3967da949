"""What one row costs the device, by arithmetic: work that grows with a window's tokens and with their square.

A layer of width D multiplies each of T tokens with 12 D^2 weights, and with 2 T D keys and values: attention adds
`T / (6 D)` to the work of everything else, and holds T^2 scores for each head. At AST-base a window of 300 s has 35,990
tokens: 9 times the work of as many seconds in short windows, and 31 GB of scores in half precision.
"""

import math
from dataclasses import dataclass

from service.model.backbone import Backbone

_FLOAT32_COPIES = 3  # of a layer's tokens, about: what comes in, what is normed, what goes out
_TYPED_COPIES = 8  # in the backbone's dtype: queries, keys, values, their product, the feed-forward's four widths
_KEPT = 1024  # window lengths whose cost is remembered


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one row.

    Args:
        frames: work, in window-frames (10 ms) of a short window.
        nbytes: memory that it takes while a layer runs, as if all its attention scores were there at once.
    """

    frames: int
    nbytes: int


class Costs:
    """Costs of rows on one backbone, by the length of their window.

    Args:
        most_bytes: memory that one row may take.
        most_frames: work of one row, which nothing interrupts: whoever comes next waits for it.
    """

    def __init__(self, backbone: Backbone, most_bytes: int, most_frames: float = math.inf) -> None:
        self._backbone = backbone
        self._most = most_bytes
        self._most_frames = most_frames
        self._known: dict[int, Cost] = {}

    def of(self, window_frames: int) -> Cost:
        """The cost of a row of so many frames."""
        cost = self._known.get(window_frames)
        if cost is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            cost = self._known[window_frames] = self._computed(window_frames)
        return cost

    def refusal(self, window_frames: int) -> str | None:
        """Why a row of so many frames cannot run here, where it cannot."""
        cost, tokens = self.of(window_frames), self._backbone.token_count(window_frames)
        row = f"a window of {window_frames} frames is {tokens:,} tokens of this backbone"
        if cost.nbytes > self._most:
            return (
                f"{row}, whose layers take {cost.nbytes / 2**20:,.0f} MiB for one row (attention grows with their "
                f"square); expected at most {self._most / 2**20:,.0f} MiB (the server's --batch-mb)"
            )
        if cost.frames > self._most_frames:
            return (
                f"{row}, as much work as {cost.frames / 100:,.0f} s of short windows; expected at most "
                f"{self._most_frames / 100:,.0f} s, as a row cannot be interrupted (the server's --batch-seconds)"
            )
        return None

    def _computed(self, window_frames: int) -> Cost:
        spec, itemsize = self._backbone.spec, self._backbone.dtype.itemsize
        tokens = self._backbone.token_count(window_frames)
        scores = spec.num_attention_heads * tokens**2 * itemsize
        states = tokens * spec.hidden_size * (4 * _FLOAT32_COPIES + itemsize * _TYPED_COPIES)
        return Cost(round(window_frames * (1 + tokens / (6 * spec.hidden_size))), scores + states)
