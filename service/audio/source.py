"""What a demuxer reads from: bytes in memory and nothing else, with a bound on how often it may reread them."""

import io
from typing import NoReturn

from service.errors import BadAudio

REREADS = 8  # times that a demuxer may read the file over
CALL_BYTES = 256  # what a call costs at least: the end of the file is not free to look at


class Source(io.BytesIO):
    """A seekable file on `encoded` that refuses to be read without end."""

    def __init__(self, encoded: bytes) -> None:
        super().__init__(encoded)
        self._left = REREADS * len(encoded) + 2**22

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        self._left -= max(len(chunk), CALL_BYTES)
        if self._left < 0:
            raise BadAudio("the file makes its reader go over it again and again; it is damaged")
        return chunk


def refuse_reference(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    """Answers every wish of a demuxer to open another file."""
    raise BadAudio("the file refers to other files; send one that holds its own audio")
