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
        self.left = REREADS * len(encoded) + 2**22  # bytes
        self.progressed = time.thread_time()  # when audio last came of what was read


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
        self._patience.left -= max(len(chunk), CALL_BYTES)
        again, idle = self._patience.left < 0, time.thread_time() - self._patience.progressed > IDLE_SECONDS
        self._refused = again or idle
        if again:
            raise BadAudio("the file makes its reader go over it again and again; it is damaged")
        if idle:
            raise BadAudio("the file keeps its reader busy without any audio; it is damaged")
        return chunk


def refuse_reference(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    """Answers every wish of a demuxer to open another file."""
    raise BadAudio("the file refers to other files; send one that holds its own audio")
