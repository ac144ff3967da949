"""What a demuxer reads from: the bytes it is given, with bounds on rereading them and on reading them in vain."""

import time
from typing import NoReturn, Protocol

from service.errors import BadAudio

REREADS = 8  # times that a demuxer may read the file over
IDLE_SECONDS = 1.0  # of the processor that may pass without a frame
IDLE_BYTES = 2**25  # that may pass without a frame where nothing can be read over: a demuxer may keep all of them
CALL_BYTES = 256  # what a call costs at least: the end of the file is not free to look at


class Readable(Protocol):
    """What is read from; where it has `seek` and `tell`, the demuxer may go back."""

    def read(self, size: int = -1, /) -> bytes: ...


class Patience:
    """How much more a clip may be read without audio coming of it, in all its parts together. For one thread.

    Args:
        size: bytes of the whole; None where nothing can be read over.
    """

    def __init__(self, size: int | None) -> None:
        self.is_once = size is None
        self.left = IDLE_BYTES if size is None else REREADS * size + 2**22  # bytes
        self.progressed = time.thread_time()  # when audio last came of what was read

    def progress(self) -> None:
        """Audio has come of what was read."""
        self.progressed = time.thread_time()
        if self.is_once:
            self.left = IDLE_BYTES


class Source:
    """A file that refuses to be read without end."""

    def __init__(self, file: Readable, patience: Patience) -> None:
        self._file = file
        self._patience = patience
        self._refused = False
        if hasattr(file, "seek") and hasattr(file, "tell"):
            self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1, /) -> bytes:
        if self._refused:
            return b""  # FFmpeg asks once more before it looks at the error
        chunk = self._file.read(size)
        self._patience.left -= max(len(chunk), CALL_BYTES)
        again, idle = self._patience.left < 0, time.thread_time() - self._patience.progressed > IDLE_SECONDS
        self._refused = again or idle
        if again and not self._patience.is_once:
            raise BadAudio("the file makes its reader go over it again and again; it is damaged")
        if idle or again:
            raise BadAudio("the file keeps its reader busy without any audio; it is damaged")
        return chunk


def refuse_reference(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    """Answers every wish of a demuxer to open another file."""
    raise BadAudio("the file refers to other files; send one that holds its own audio")
