"""Clients in a process of their own, so that what a test measures beside them is the server and not its own threads."""

import asyncio
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Clients:
    """So many clients that send one request again and again until `seconds` are over; at least once."""

    count: int
    request: bytes
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer; `status` 0 is a connection that ended, or was given up, without one."""

    status: int
    seconds: float
    head: str


def request_of(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request on the wire; `content_type` is Content-Type."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@contextmanager
def flooding(url: str, *kinds: Clients) -> Iterator["Future[list[list[Answered]]]"]:
    """Runs the clients beside; the future has their answers by kind."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool.submit(_flood, url, kinds)


def _flood(url: str, kinds: Sequence[Clients]) -> list[list[Answered]]:
    async def run() -> list[list[Answered]]:
        place = urlsplit(url)
        found: list[list[Answered]] = [[] for _ in kinds]
        await asyncio.gather(
            *(
                _client(place.hostname or "", place.port or 0, kind, answers)
                for kind, answers in zip(kinds, found, strict=True)
                for _ in range(kind.count)
            )
        )
        return found

    return asyncio.run(run())


async def _client(host: str, port: int, kind: Clients, answers: list[Answered]) -> None:
    ends = time.monotonic() + kind.seconds
    while True:
        started = time.monotonic()
        status, head = 0, ""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(kind.request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            status = int(head.split(maxsplit=2)[1])
            writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        answers.append(Answered(status, time.monotonic() - started, head))
        if time.monotonic() >= ends:
            return
