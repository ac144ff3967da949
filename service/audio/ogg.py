"""Pages of an ogg file (RFC 3533): their checksums and numbers, and the links of a chain, each a file of its own.

And the code books of Vorbis, for which FFmpeg would reserve gigabytes.
"""

import re
import zlib
from collections.abc import Iterator

from service.audio.arriving import Arriving
from service.errors import BadAudio

MAX_PAGES = 200_000  # 300 s of packets of 2.5 ms, each on its own, have 120,000
MAX_LINKS = 300
MAX_BOOK_VALUES = 4_000_000  # floats in all code books of one stream; libvorbis writes about 200,000
REST_BYTES = 2**20  # looked at behind the last page of a file that is not there as a whole
_BOOK = re.compile(rb"BCV(..)(...)", re.DOTALL)  # each code book's sync, dimensions, entries
_HEADER_BYTES = 27
_FIRST, _LAST = 2, 4  # flags of a stream's pages
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Pages:
    """Judges the pages of one file, one behind the other.

    Args:
        most: pages that are accepted.

    Attributes:
        begins: whether the page that was judged last begins another link.
    """

    def __init__(self, most: int = MAX_PAGES) -> None:
        self.begins = False
        self._most = self._left = most
        self._links = 1
        self._numbers: dict[bytes, int] = {}  # next page of each stream, by serial number
        self._opening, self._open_streams = True, 0

    def end_of(self, encoded: bytes, at: int) -> int | None:
        """Where the page at `at` ends; None where none begins, and none may follow.

        Raises:
            BadAudio: it is damaged, another one is missing, or there are too many.
        """
        end = _page_end(encoded, at)
        if end is None:
            _check_rest(encoded, at, self._open_streams)
            return None
        if not self._left:
            raise BadAudio(f"the ogg file has more than {self._most} pages")
        self._left -= 1
        flags, serial = encoded[at + 5], encoded[at + 14 : at + 18]
        self.begins = bool(flags & _FIRST) and not self._opening
        if self.begins:
            self._links += 1
            if self._links > MAX_LINKS:
                raise BadAudio(f"the ogg file is a chain of more than {MAX_LINKS} links")
            self._numbers.clear()
            self._open_streams = 0
        self._opening = bool(flags & _FIRST)
        self._open_streams += self._opening - bool(flags & _LAST)
        number = int.from_bytes(encoded[at + 18 : at + 22], "little")
        wanted = self._numbers.get(serial, number)
        if number != wanted:
            raise BadAudio(f"the ogg file is damaged: page {wanted} of a stream is missing, {number} follows")
        self._numbers[serial] = (number + 1) & 0xFFFFFFFF
        return end


def split_links(encoded: bytes) -> list[bytes]:
    """The links of a chain, or the whole file where it is one; every page has been checked.

    Raises:
        BadAudio: a page is damaged, missing or cut off, or there are too many.
    """
    starts, position, pages = [0], 0, Pages()
    while (end := pages.end_of(encoded, position)) is not None:
        if pages.begins:
            starts.append(position)
        position = end
    ends = [*starts[1:], position]
    return [encoded[start:end] for start, end in zip(starts, ends, strict=True)]


def links(arriving: Arriving, most_pages: int) -> Iterator[Arriving]:
    """As `split_links`, of a file as it comes: each link is to be read before the next one is asked for."""
    pages = Pages(most_pages)
    page = _next_page(arriving, pages)

    def of_link() -> Iterator[bytes]:
        nonlocal page
        while page:
            yield page
            page = _next_page(arriving, pages)
            if pages.begins:
                return

    while page:
        link = Arriving(of_link())
        yield link
        for _ in link.rest():  # what its reader left
            pass
        pages.begins = False


def _next_page(arriving: Arriving, pages: Pages) -> bytes:
    """The next page, judged; empty behind the last one."""
    head = arriving.peek(_HEADER_BYTES)
    table = arriving.peek(_HEADER_BYTES + head[26])[_HEADER_BYTES:] if len(head) == _HEADER_BYTES else b""
    is_page = head[:4] == b"OggS"
    seen = arriving.peek(_HEADER_BYTES + len(table) + sum(table) if is_page else REST_BYTES)
    end = pages.end_of(seen, 0)
    arriving.skip(end or 0)
    return seen[: end or 0]


def _page_end(encoded: bytes, at: int) -> int | None:
    """Where the page at `at` ends; None where none begins."""
    if encoded[at : at + 4] != b"OggS":
        return None
    head = encoded[at : at + _HEADER_BYTES]
    table = encoded[at + _HEADER_BYTES : at + _HEADER_BYTES + head[26]] if len(head) == _HEADER_BYTES else b""
    end = at + _HEADER_BYTES + len(table) + sum(table)
    if len(head) < _HEADER_BYTES or len(table) < head[26] or end > len(encoded):
        raise BadAudio(f"the ogg file is cut off: {max(1, end - len(encoded))} bytes of it are missing; send it whole")
    told = int.from_bytes(head[22:26], "little")
    if _checksum(head[:22] + bytes(4) + encoded[at + 26 : end]) != told:
        raise BadAudio(f"the ogg file is damaged: the page at byte {at} does not have the checksum that it states")
    return end


def _check_rest(encoded: bytes, at: int, open_streams: int) -> None:
    """What follows the last page may be anything, once every stream has ended and no page comes after it."""
    rest = encoded[at:]
    if rest and (open_streams or b"OggS" in rest):
        if b"OggS".startswith(rest[:4]):
            raise BadAudio("the ogg file is cut off: its last page is not whole; send it whole")
        raise BadAudio(f"the ogg file is damaged: no page begins at byte {at}, where the last one ends")


def _checksum(content: bytes) -> int:
    """CRC-32 by the polynomial of zlib's, but with every byte's and the register's bits in the other order."""
    register = zlib.crc32(content.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(register.to_bytes(4, "little").translate(_REVERSED))


def check_books(headers: bytes) -> None:
    """Refuse Vorbis headers whose code books unfold to more than an encoder's ever do.

    Books are packed bit by bit, so their sync pattern is looked for at each of the eight bit positions.

    Raises:
        BadAudio
    """
    bits = int.from_bytes(headers, "little")
    values = 0
    for shift in range(8):
        for match in _BOOK.finditer((bits >> shift).to_bytes(len(headers), "little")):
            dimensions, entries = (int.from_bytes(field, "little") for field in match.groups())
            if dimensions <= 16 and entries <= 65_536:  # the decoder itself refuses larger ones
                values += (1 + dimensions) * entries
    if values > MAX_BOOK_VALUES:
        raise BadAudio(f"the vorbis code books hold {values} values; at most {MAX_BOOK_VALUES} are accepted")
