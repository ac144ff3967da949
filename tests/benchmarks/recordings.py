"""Long recordings beside clips: memory over hours, throughput, and what a recording does to the p99 of clips.

`python -m tests.benchmarks.recordings` prints the three figures; `--hours` and `--seconds` make them shorter.
"""

import argparse
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import httpx
import numpy as np

from tests.cli.process import Served, serving
from tests.synthesis import encode, noise

ADAPTER = "sound-events"
BUNDLES = Path(__file__).parents[2] / "adapters" / "bundles"
CHUNK_SECONDS = 8
CLIENTS = 2
ROUNDS = 8


def wav_of(hours: float) -> Iterator[bytes]:
    """A recording as a pipe writes it, made while it is sent."""
    encoded = encode(noise(CHUNK_SECONDS)[:, 0])
    begin = encoded.index(b"data") + 8
    yield encoded[: begin - 4] + b"\xff\xff\xff\xff"
    for _ in range(max(1, round(hours * 3600 / CHUNK_SECONDS))):
        yield encoded[begin : begin + 2 * 16_000 * CHUNK_SECONDS]


def memory_mib(served: Served) -> float:
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def listen(served: Served, hours: float, hop: float) -> float:
    """Sends a recording; seconds until its events are there."""
    began = time.monotonic()
    answer = httpx.post(f"{served.url}/v1/events?adapter={ADAPTER}&hop={hop}", content=wav_of(hours), timeout=None)
    assert answer.status_code == 200, answer.text
    assert "error" not in answer.json()
    return time.monotonic() - began


def memory_over(served: Served, hours: float, hop: float) -> tuple[float, float]:
    """MiB above idle at the worst moment of a recording of so many hours, and the seconds that it took."""
    for _ in range(2):
        listen(served, 0.02, hop)
    idle = memory_mib(served)
    ended, worst = threading.Event(), idle

    def look() -> None:
        nonlocal worst
        while not ended.wait(0.02):
            worst = max(worst, memory_mib(served))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        seconds = listen(served, hours, hop)
    finally:
        ended.set()
        looking.join()
    return worst - idle, seconds


def waits(served: Served, seconds: float, clients: int) -> list[float]:
    """Of clips of one window, sent by so many clients one after the other, milliseconds."""
    clip, found = encode(noise(5.0)[:, 0]), list[float]()

    def ask() -> None:
        with httpx.Client(base_url=served.url, timeout=60) as http:
            ends = time.monotonic() + seconds
            while (began := time.monotonic()) < ends:
                assert http.post(f"/v1/classify?adapter={ADAPTER}", content=clip).status_code == 200
                found.append(1000 * (time.monotonic() - began))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@contextlib.contextmanager
def recording(served: Served) -> Iterator[None]:
    """One that is heard meanwhile, and broken off at the end."""
    place = urlsplit(served.url)
    with socket.create_connection((place.hostname, place.port)) as connection:

        def send() -> None:
            with contextlib.suppress(OSError):
                head = (
                    f"POST /v1/events?adapter={ADAPTER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
                )
                connection.sendall(head.encode() + b"\r\n")
                for chunk in wav_of(6.0):
                    connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))

        sending = threading.Thread(target=send)
        sending.start()
        time.sleep(0.5)
        yield
        connection.shutdown(socket.SHUT_RDWR)
        sending.join()


def beside_a_recording(served: Served, seconds: float) -> tuple[float, float]:
    """The p99 of clips without and beside a recording that never ends, milliseconds, over rounds in turn."""
    alone: list[float] = []
    beside: list[float] = []
    for _ in range(ROUNDS):
        alone += waits(served, seconds, CLIENTS)
        with recording(served):
            beside += waits(served, seconds, CLIENTS)
        time.sleep(0.5)
    return float(np.percentile(alone, 99)), float(np.percentile(beside, 99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round of clips")
    asked = parser.parse_args()
    with (
        TemporaryDirectory() as directory,
        serving("embedded", Path(directory), dtype="auto", adapters=BUNDLES) as served,
    ):
        clips = 5.0 * len(waits(served, asked.seconds, 8)) / asked.seconds
        above, seconds = memory_over(served, asked.hours, hop=2.0)
        print(f"memory: {above:.0f} MiB above idle over {asked.hours:g} h of audio, heard in {seconds:.0f} s (hop 2 s)")
        windows = asked.hours * 3600 / 5.0 * 5.0 / seconds
        print(f"throughput: {windows:.0f} s of windows a second; clips of one window, 8 at once: {clips:.0f}")
        alone, beside = beside_a_recording(served, asked.seconds)
        ratio = beside / alone
        print(f"p99 of clips, {CLIENTS} at once: {alone:.0f} ms, {beside:.0f} ms beside a recording, {ratio:.2f} x")


if __name__ == "__main__":
    main()
