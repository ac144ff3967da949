"""What a demuxer reads from: bytes in memory and nothing else, with bounds on rereading and on reading in vain."""

import io
import time
from typing import NoReturn

from service.errors import BadAudio

REREADS = 8  # times that a demuxer may read the file over
IDLE_SECONDS = 1.0  # of the processor that may pass without a frame
CALL_BYTES = 256  # what a call costs at least: the end of the file is not free to look at


class Patience:
    """How much more a clip may be read without audio coming of it, in all its parts together. For one thread."""

    def __init__(self, encoded: bytes) -> None:
        self._left = REREADS * len(encoded) + 2**22
        self._progressed = time.thread_time()

    def progress(self) -> None:
        """Audio has come of what was read."""
        self._progressed = time.thread_time()

    def spend(self, read: int) -> None:
        """So many bytes were read; raises BadAudio once it is enough."""
        self._left -= max(read, CALL_BYTES)
        if self._left < 0:
            raise BadAudio("the file makes its reader go over it again and again; it is damaged")
        if time.thread_time() - self._progressed > IDLE_SECONDS:
            raise BadAudio("the file keeps its reader busy without any audio; it is damaged")


class Source(io.BytesIO):
    """A seekable file on `encoded` that refuses to be read without end."""

    def __init__(self, encoded: bytes, patience: Patience) -> None:
        super().__init__(encoded)
        self._patience = patience
        self._refused = False

    def read(self, size: int | None = -1, /) -> bytes:
        if self._refused:
            return b""  # FFmpeg asks once more before it looks at the error
        chunk = super().read(size)
        try:
            self._patience.spend(len(chunk))
        except BadAudio:
            self._refused = True
            raise
        return chunk


def refuse_reference(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    """Answers every wish of a demuxer to open another file."""
    raise BadAudio("the file refers to other files; send one that holds its own audio")
