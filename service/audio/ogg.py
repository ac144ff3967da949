"""Pages of an ogg file (RFC 3533): their checksums and numbers, and the links of a chain, each a file of its own."""

import zlib

from service.errors import BadAudio

MAX_PAGES = 200_000  # 300 s of packets of 2.5 ms, each on its own, have 120,000
MAX_LINKS = 300
_HEADER_BYTES = 27
_FIRST, _LAST = 2, 4  # flags of a stream's pages
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def split_links(encoded: bytes) -> list[bytes]:
    """The links of a chain, or the whole file where it is one; every page has been checked.

    Raises:
        BadAudio: a page is damaged, missing or cut off, or there are too many.
    """
    starts = [0]
    numbers: dict[bytes, int] = {}  # next page of each stream, by serial number
    opening, open_streams = True, 0
    position = 0
    for _ in range(MAX_PAGES):
        end = _page_end(encoded, position)
        if end is None:
            _check_rest(encoded, position, open_streams)
            break
        flags, serial = encoded[position + 5], encoded[position + 14 : position + 18]
        if flags & _FIRST:
            if not opening:
                starts.append(position)
                numbers.clear()
                open_streams = 0
            open_streams += 1
        opening = bool(flags & _FIRST)
        open_streams -= bool(flags & _LAST)
        number = int.from_bytes(encoded[position + 18 : position + 22], "little")
        wanted = numbers.get(serial, number)
        if number != wanted:
            raise BadAudio(f"the ogg file is damaged: page {wanted} of a stream is missing, {number} follows")
        numbers[serial] = (number + 1) & 0xFFFFFFFF
        position = end
    else:
        raise BadAudio(f"the ogg file has more than {MAX_PAGES} pages")
    if len(starts) > MAX_LINKS:
        raise BadAudio(f"the ogg file is a chain of {len(starts)} links; at most {MAX_LINKS} are accepted")
    ends = [*starts[1:], position]
    return [encoded[start:end] for start, end in zip(starts, ends, strict=True)]


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
