"""A process in which files are decoded that could bring a process down; run as `python -m tests.audio.sandbox`.

Reads files as (length, bytes) from standard input and answers one line of JSON for each: what came of it, how long it
took, and the most memory above idle. Its address space is bounded, so that a bomb fails here and nowhere else.
"""

import json
import resource
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

HEADROOM_BYTES = 2**30  # of address space over what the idle process has
HANG_SECONDS = 60  # wall clock, of a busy machine
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What decoding one file came to.

    Args:
        outcome: `audio`, or the name of the exception.
        seconds: of the processor, as the machine may be busy with other work.
        megabytes: peak resident memory above idle, MiB.
        length: of the decoded clip, seconds; 0 without one.
    """

    outcome: str
    detail: str
    seconds: float
    megabytes: float
    length: float


class Sandbox:
    """Decodes in another process, which `with` starts and stops."""

    def __enter__(self) -> "Sandbox":
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.audio.sandbox"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def decode(self, encoded: bytes) -> Verdict:
        """Raises AssertionError when the process dies of the file or hangs; the next file gets a new one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(len(encoded).to_bytes(8) + encoded)
            self._process.stdin.flush()
        readable = select.select([self._process.stdout], [], [], HANG_SECONDS)[0]
        line = self._process.stdout.readline() if readable else b""
        if not line:
            self._process.kill()
            status = self._process.wait()
            self._process.communicate()
            self._start()
            raise AssertionError(f"the process that decodes died or hung: status {status}")
        return Verdict(**json.loads(line))


def _files(source: BinaryIO) -> Iterator[bytes]:
    while head := source.read(8):
        yield source.read(int.from_bytes(head))


def _verdicts(files: Iterable[bytes]) -> Iterator[Verdict]:
    import numpy as np

    from service.audio.decode import decode
    from service.errors import ServiceError
    from tests.synthesis import encode, tone

    decode(encode(tone(1.0, rate=44_100), 44_100))  # what is set up once does not count
    limit = _kilobytes("VmSize") * 1024 + HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for encoded in files:
        idle, length, detail = _reset_peak(), 0.0, ""
        started = time.process_time()
        try:
            waveform = decode(encoded)
            outcome, length = "audio", waveform.seconds
            if not np.isfinite(waveform.samples).all():
                outcome = "samples that are not finite"
        except ServiceError as error:
            outcome, detail = error.code, error.detail
        except Exception as error:
            outcome, detail = type(error).__name__, repr(error)
        seconds = time.process_time() - started
        yield Verdict(outcome, detail, seconds, (_kilobytes("VmHWM") - idle) / 1024, length)


def _reset_peak() -> int:
    """Makes the present size the peak; that size, KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _kilobytes("VmRSS")


def _kilobytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise LookupError(field)


def main() -> None:
    for verdict in _verdicts(_files(sys.stdin.buffer)):
        print(json.dumps(asdict(verdict)), flush=True)


if __name__ == "__main__":
    main()
