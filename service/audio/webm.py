"""The elements of a webm file (RFC 8794): whether it ends before they do, and whether their checksums hold.

It is silent where the file states nothing, as one that was recorded as it came.
"""

import zlib

from service.errors import BadAudio

MAX_ELEMENTS = 500_000  # looked at in one file; what lies behind is not judged
_NESTED = (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75")  # Segment, Cluster
_CHECKSUM = b"\xbf\x84"  # first in an element, of what follows in it
_HEADER_BYTES = 12 + 2  # of an id and a size at their longest, and of a checksum's beginning


class Elements:
    """The elements of one file, followed as its bytes come.

    Args:
        most: elements that are followed.
        checked: bytes of the largest element whose checksum is judged; it is kept until it is there.
    """

    def __init__(self, most: int = MAX_ELEMENTS, checked: float = float("inf")) -> None:
        self._left = most
        self._checked = checked
        self._carry = b""
        self._size = self._next = self._end = 0  # bytes that came; where the next element begins; where the last ends

    def feed(self, chunk: bytes) -> None:
        """Takes the file's next bytes. Raises BadAudio: an element is damaged."""
        self._size += len(chunk)
        if self._left:
            self._follow(self._carry + chunk if self._carry else chunk, ended=False)

    def missing(self) -> int:
        """How many bytes the file, which has ended, lacks. Raises BadAudio: an element is damaged."""
        if self._left:
            self._follow(self._carry, ended=True)
        return max(0, self._end - self._size)

    def _follow(self, seen: bytes, ended: bool) -> None:
        base = self._size - len(seen)
        while self._left and (there := len(seen) - (at := self._next - base)) > 0:
            if there < _HEADER_BYTES and not ended:
                break
            if not self._step(seen, at, base):
                break
        self._carry = seen[max(0, self._next - base) :] if self._left else b""

    def _step(self, seen: bytes, at: int, base: int) -> bool:
        """Passes the element at `at`, or enters it; not one whose checksum cannot be judged yet."""
        width = 9 - seen[at].bit_length()  # of the element's id
        kind = seen[at : at + width]
        at += width
        length = 9 - seen[at].bit_length() if width <= 4 and at < len(seen) else 9
        if length > 8:  # this is no element
            self._left = 0
            return False
        size = int.from_bytes(seen[at : at + length]) & ((1 << 7 * length) - 1)
        start = at + length
        if size == (1 << 7 * length) - 1:  # unknown
            self._left = self._left - 1 if kind in _NESTED else 0
            self._next = base + start
            return True
        self._end = max(self._end, base + start + size)
        if 6 <= size <= self._checked and seen[start : start + 2] == _CHECKSUM:
            if len(seen) < start + size:
                return False
            told = int.from_bytes(seen[start + 2 : start + 6], "little")
            if zlib.crc32(memoryview(seen)[start + 6 : start + size]) != told:
                where = f"the element at byte {base + start}"
                raise BadAudio(f"the webm file is damaged: {where} does not have the checksum it states")
        self._left -= 1
        self._next = base + start + (0 if kind in _NESTED else size)
        return True
