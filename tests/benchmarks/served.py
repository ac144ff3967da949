"""`ipet serve` in a process of its own, and connections that cost their own process next to nothing."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Served:
    """A service that is ready.

    Args:
        start_seconds: from the start of the process to its being ready.
    """

    url: str
    pid: int
    start_seconds: float
    http: httpx.Client

    @property
    def mib(self) -> float:
        """Memory of the process now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def cpu_seconds(self) -> tuple[float, float]:
        """Of the event loop's thread, and of the whole process."""
        return _cpu_seconds(Path(f"/proc/{self.pid}/task/{self.pid}/stat")), _cpu_seconds(
            Path(f"/proc/{self.pid}/stat")
        )


@contextmanager
def serving(data_dir: Path, **settings: Any) -> Iterator[Served]:
    """Runs the service on a free port until the block ends."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IPET_")}
    given = {"data_dir": data_dir, "port": 0} | settings
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        running = subprocess.Popen(
            [sys.executable, "-m", "service", "serve"],
            env=kept | {f"IPET_{name.upper()}": str(value) for name, value in given.items()},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert running.stdout is not None
            greeting = running.stdout.readline()
            seconds = time.perf_counter() - started
            if " on http" not in greeting:
                log.seek(0)
                raise RuntimeError(f"the service did not start: {log.read().decode(errors='replace')[-2000:]}")
            url = greeting.split(" on ")[1].split()[0]
            with httpx.Client(base_url=url, timeout=60) as http:
                yield Served(url, running.pid, seconds, http)
        finally:
            running.terminate()
            try:
                running.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


class Connection:
    """One connection that is kept alive: requests are bytes made beforehand, of the answers only the status is read."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._address = host, int(port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> int:
        """The status of the answer."""
        if self._streams is None or self._streams[0].at_eof():  # the server closes what is idle
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.split(b"content-length: ")[1].split(b"\r\n")[0]
        await reader.readexactly(int(length))
        if b"connection: close" in head:
            self.close()
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _cpu_seconds(stat: Path) -> float:
    user, system = stat.read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
