"""How fast the device is: a line through the times of recent batches. Pure, without a clock of its own."""

_KEPT = 0.9  # weight that older batches keep when one more is seen
_LEAST_MARGINAL = 0.1  # of the mean time a frame: no noise makes frames cheaper than that


class Pace:
    """Seconds of a batch = a fixed cost + window-frames x a marginal cost, by exponentially weighted least squares.

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
        self._weight = _KEPT * self._weight + 1
        self._frames = _KEPT * self._frames + frames
        self._seconds = _KEPT * self._seconds + seconds
        self._squares = _KEPT * self._squares + frames * frames
        self._products = _KEPT * self._products + frames * seconds
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
