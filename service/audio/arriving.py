"""The bytes of a recording as they come, in one direction: what lies ahead can be looked at, nothing is kept."""

from collections.abc import Iterator


class Arriving:
    """A file to read once, of chunks that come one by one.

    Args:
        chunks: none of them empty; asked for the next one when it is needed.

    Attributes:
        position: of the next byte.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.position = 0
        self._chunks = chunks
        self._ahead, self._at = b"", 0  # what has come, and where in it the next byte is

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, which are read again later; fewer at the end."""
        have = len(self._ahead) - self._at
        if have < size:
            pieces = [self._ahead[self._at :]]
            while have < size and (chunk := next(self._chunks, b"")):
                pieces.append(chunk)
                have += len(chunk)
            self._ahead, self._at = b"".join(pieces), 0
        return self._ahead[self._at : self._at + size]

    def read(self, size: int = -1) -> bytes:
        """The next bytes that are there, up to `size`; none at the end."""
        if self._at == len(self._ahead):
            self._ahead, self._at = next(self._chunks, b""), 0
        end = len(self._ahead) if size < 0 else self._at + size
        piece = self._ahead[self._at : end]
        self._at += len(piece)
        self.position += len(piece)
        return piece

    def skip(self, size: int) -> int:
        """Passes over so many bytes; how many there were."""
        left = size
        while left and (piece := self.read(left)):
            left -= len(piece)
        return size - left

    def rest(self) -> Iterator[bytes]:
        """All that is to come."""
        while piece := self.read():
            yield piece
