"""How much memory a batch may take: what is set, less what the device has refused. Pure, without torch or a clock."""

_RECOVERY = 1 / 64  # by which the bound grows with each batch that nearly filled it


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
