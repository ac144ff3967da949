"""A process that reads files that could bring a process down; run as `python -m tests.sandbox audio` or `weights`.

Reads files as (length, bytes) from standard input and answers one line of JSON for each: what came of it, how long it
took, and the most memory above idle. Its address space is bounded, so that a bomb fails here and nowhere else.
"""

import json
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Final, Literal

SECONDS_ALLOWED = 2.0  # of the processor, for one file
MEGABYTES_ALLOWED = 300.0  # above idle
HEADROOM_BYTES = 2**30  # of address space over what the idle process has
HANG_SECONDS = 60  # wall clock, of a busy machine
CHUNK_BYTES = 2**16  # in which weights arrive
_STATUS = Path("/proc/self/status")

Kind = Literal["audio", "weights"]
Taken = tuple[str, float]  # outcome, and the length of what was heard


@dataclass(frozen=True, slots=True)
class Verdict:
    """What reading one file came to.

    Args:
        outcome: `audio` or `weights`, a ServiceError's code, or the name of another exception.
        seconds: of the processor, as the machine may be busy with other work.
        megabytes: peak resident memory above idle, MiB.
        length: of the decoded clip, seconds; 0 without one.
    """

    outcome: str
    detail: str
    seconds: float
    megabytes: float
    length: float

    def faults(self, outcomes: set[str]) -> list[str]:
        """What is wrong with how the file was taken, where it may have come to `outcomes`."""
        wrong = {
            f"ended in {self.outcome}: {self.detail[:300]}": self.outcome not in outcomes,
            f"took {self.seconds:.1f} s": self.seconds > SECONDS_ALLOWED,
            f"took {self.megabytes:.0f} MB": self.megabytes > MEGABYTES_ALLOWED,
            f"is told in {len(self.detail)} characters": len(self.detail) > 1_000,
        }
        return [fault for fault, holds in wrong.items() if holds]


class Sandbox:
    """Reads files of one kind in another process, which `with` starts and stops."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def __enter__(self) -> "Sandbox":
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.sandbox", self._kind]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def take(self, encoded: bytes) -> Verdict:
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
            raise AssertionError(f"the process that reads died or hung: status {status}")
        return Verdict(**json.loads(line))


def _files(source: BinaryIO) -> Iterator[bytes]:
    while head := source.read(8):
        yield source.read(int.from_bytes(head))


def _audio() -> Callable[[bytes], Taken]:
    import numpy as np

    from service.audio.decode import decode
    from tests.synthesis import encode, tone

    def take(encoded: bytes) -> Taken:
        waveform = decode(encoded)
        finite = np.isfinite(waveform.samples).all()
        return "audio" if finite else "samples that are not finite", waveform.seconds

    take(encode(tone(1.0, rate=44_100), 44_100))  # what is set up once does not count
    return take


def _weights() -> Callable[[bytes], Taken]:
    """As an upload takes them: before or after the config, looked at while they arrive, then whole."""
    from service.errors import InvalidBundle
    from service.registry.fit import Fit
    from service.registry.manifest import ManifestLimits
    from service.registry.objects import Directory
    from service.registry.upload import Upload
    from tests.registry.bundles import AST, bundle

    os.fsync = lambda _: None  # what survives a crash is not tried here, and takes longer than all the rest
    files = bundle()
    fit = Fit(AST, ManifestLimits())
    directory = TemporaryDirectory()
    local = Directory(Path(directory.name))

    def arrive(parts: dict[str, bytes], _kept: TemporaryDirectory[str] = directory) -> InvalidBundle | None:
        upload = Upload("events", local, fit)
        try:
            for part, content in parts.items():
                upload.begin(part)
                for start in range(0, len(content), CHUNK_BYTES):
                    upload.write(part, content[start : start + CHUNK_BYTES])
            upload.read_weights(upload.finish())
        except InvalidBundle as error:
            return error
        finally:
            upload.discard()
        return None

    def take(encoded: bytes) -> Taken:
        orders = {"config": files.config, "weights": encoded}, {"weights": encoded, "config": files.config}
        first, second = map(arrive, orders)
        if first and second:
            raise first
        return "refused in one order only" if first or second else "weights", 0.0

    take(files.weights)
    return take


TAKERS: Final[dict[str, Callable[[], Callable[[bytes], Taken]]]] = {"audio": _audio, "weights": _weights}


def _verdicts(files: Iterable[bytes], take: Callable[[bytes], Taken]) -> Iterator[Verdict]:
    from service.errors import ServiceError

    limit = _kilobytes("VmSize") * 1024 + HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for encoded in files:
        idle, length, detail = _reset_peak(), 0.0, ""
        started = time.process_time()
        try:
            outcome, length = take(encoded)
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
    for verdict in _verdicts(_files(sys.stdin.buffer), TAKERS[sys.argv[1]]()):
        print(json.dumps(asdict(verdict)), flush=True)


if __name__ == "__main__":
    main()
