"""What rows cost the device: by arithmetic, and as the batches so far have shown.

A layer of width D multiplies each of T tokens with 12 D^2 weights, and with 2 T D keys and values: attention adds
`T / (6 D)` to the work of everything else, and holds T^2 scores for each head. At AST-base a window of 300 s has 35,990
tokens: 9 times the work of as many seconds in short windows, and 31 GB of scores in half precision.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from service.model.backbone import Backbone

_FLOAT32_COPIES = 3  # of a layer's tokens, about: what comes in, what is normed, what goes out
_TYPED_COPIES = 8  # in the backbone's dtype: queries, keys, values, their product, the feed-forward's four widths
_KEPT = 1024  # window lengths whose cost is remembered
_WEIGHT = 0.9  # weight that older batches keep when one more is seen
_RECOVERY = 1 / 64  # by which a bound on memory grows with each batch that nearly filled it
_LEAST_MARGINAL = 0.1  # of the mean time a frame: no noise makes frames cheaper than that


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

    Attributes:
        of: the cost of a row of so many frames.
    """

    def __init__(self, backbone: Backbone, most_bytes: int, most_frames: float = math.inf) -> None:
        self._backbone = backbone
        self._most = most_bytes
        self._most_frames = most_frames
        self.of = lru_cache(_KEPT)(self._computed)

    def refusal(self, window_frames: int) -> str | None:
        """Why a row of so many frames cannot run here, where it cannot."""
        cost, tokens = self.of(window_frames), self._backbone.token_count(window_frames)
        shorter = "give shorter windows (`ipet import --window-frames`) or raise the server's"
        row = f"a window of {window_frames} frames is {tokens:,} tokens of this backbone"
        if cost.nbytes > self._most:
            return (
                f"{row}, whose layers take {cost.nbytes / 2**20:,.0f} MiB for one row (attention grows with their "
                f"square); expected at most {self._most / 2**20:,.0f} MiB: {shorter} --batch-mb"
            )
        if cost.frames > self._most_frames:
            return (
                f"{row}, as much work as {cost.frames / 100:,.0f} s of short windows; expected at most "
                f"{self._most_frames / 100:,.0f} s, as a row cannot be interrupted: {shorter} --batch-seconds"
            )
        return None

    def _computed(self, window_frames: int) -> Cost:
        spec, itemsize = self._backbone.spec, self._backbone.dtype.itemsize
        tokens = self._backbone.token_count(window_frames)
        scores = spec.num_attention_heads * tokens**2 * itemsize
        states = tokens * spec.hidden_size * (4 * _FLOAT32_COPIES + itemsize * _TYPED_COPIES)
        return Cost(round(window_frames * (1 + tokens / (6 * spec.hidden_size))), scores + states)


class Pace:
    """A line through the times of recent batches.

    Seconds of a batch = a fixed cost + window-frames x a marginal cost, by exponentially weighted least squares.

    Attributes:
        rate: window-frames a second, fixed costs included; 0 before the first batch.
    """

    def __init__(self) -> None:
        self.rate = 0.0
        self._fixed = 0.0
        self._marginal = 0.0  # seconds a window-frame; 0 before the first batch
        self._weight = self._frames = self._seconds = self._squares = self._products = 0.0

    def observe(self, frames: int, seconds: float) -> None:
        """Learns that a batch of so many window-frames took so long."""
        seconds = max(seconds, 1e-6)
        self._weight = _WEIGHT * self._weight + 1
        self._frames = _WEIGHT * self._frames + frames
        self._seconds = _WEIGHT * self._seconds + seconds
        self._squares = _WEIGHT * self._squares + frames * frames
        self._products = _WEIGHT * self._products + frames * seconds
        mean = self._seconds / self._frames
        variance = self._squares - self._frames**2 / self._weight
        covariance = self._products - self._frames * self._seconds / self._weight
        has_line = variance > 1e-3 * self._squares  # else all batches were alike
        self._marginal = min(mean, max(_LEAST_MARGINAL * mean, covariance / variance)) if has_line else mean
        self._fixed = max(0.0, (self._seconds - self._marginal * self._frames) / self._weight)
        self.rate = self._frames / self._seconds

    def frames_within(self, seconds: float) -> float:
        """Window-frames whose marginal cost is `seconds`; infinite before the first batch.

        The fixed cost is left out: where it is large, small batches would only waste it.
        """
        return seconds / self._marginal if self._marginal else float("inf")

    def frames_for(self, overhead: float) -> float:
        """Window-frames at which the fixed cost is no more than the share `overhead` of a batch's time."""
        return self._fixed * (1 / overhead - 1) / self._marginal if self._marginal else float("inf")


class Headroom:
    """A bound that falls to half of what the device had no memory for, and comes back slowly.

    Args:
        most: bytes that the rows of a batch may take where the device never ran out of memory.
    """

    def __init__(self, most: float) -> None:
        self.nbytes = self._most = most

    def refused(self, nbytes: int) -> None:
        """The device had no room for so much."""
        self.nbytes = max(1.0, min(self.nbytes, nbytes / 2))

    def fitted(self, nbytes: int) -> None:
        """The device had room for so much."""
        if nbytes > self.nbytes / 2:
            self.nbytes = min(self._most, max(self.nbytes, nbytes) * (1 + _RECOVERY))
