"""How soon live audio is answered: `python -m tests.live_audio [busy] [idle] [seconds]`. Prints a table.

A server of its own with the embedded backbone; busy streams send a clip again and again as a microphone would, 20 ms at
a time, the idle ones were started and are silent. The latency is that from the moment at which a window's last sample
was sent to the moment at which its message has come.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from websockets.asyncio.client import connect

from service.audio.decode import decode
from tests.cli.process import Served, serving

BUNDLES = Path("adapters/bundles")
CLIP = Path("adapters/examples/dog.flac")
ADAPTER = "sound-events"
FRAME_SECONDS = 0.02
RATE = 16_000
START = json.dumps({"type": "start", "format": "pcm16", "sampling_rate": RATE})


async def busy(url: str, audio: bytes, seconds: float, hop: float, delay: float) -> list[float]:
    """The latency of every window of one stream, seconds."""
    await asyncio.sleep(delay)  # microphones are not in step
    latencies = []
    async with connect(f"{url}/v1/stream?adapter={ADAPTER}&hop={hop}", max_size=None) as socket:
        await socket.send(START)
        assert json.loads(await socket.recv())["type"] == "started"
        began = time.monotonic()

        async def send() -> None:
            size = round(FRAME_SECONDS * RATE) * 2
            for number in range(round(seconds / FRAME_SECONDS)):
                await asyncio.sleep(max(0.0, began + (number + 1) * FRAME_SECONDS - time.monotonic()))
                at = number * size % (len(audio) - size)
                await socket.send(audio[at : at + size])
            await socket.send('{"type": "end"}')

        sending = asyncio.create_task(send())
        async for message in socket:
            told = json.loads(message)
            assert told["type"] != "error", told
            if told["type"] == "window" and told["end"] < seconds - FRAME_SECONDS:
                sent = np.ceil(told["end"] / FRAME_SECONDS - 1e-6) * FRAME_SECONDS  # its last samples' frame
                latencies.append(time.monotonic() - began - sent)
        await sending
    return latencies


async def measure(url: str, count: int, idle: int, seconds: float, hop: float = 0.5) -> list[float]:
    """Latencies of `count` busy streams beside `idle` ones."""
    audio = decode(CLIP.read_bytes()).samples
    pcm = np.round(audio * 32767).astype("<i2").tobytes()
    opened = [await connect(f"{url}/v1/stream?adapter={ADAPTER}") for _ in range(idle)]
    for socket in opened:
        await socket.send(START)
        assert json.loads(await socket.recv())["type"] == "started"
    found = await asyncio.gather(*(busy(url, pcm, seconds, hop, hop * n / count) for n in range(count)))
    for socket in opened:
        assert (await socket.ping()) is not None
        await socket.close()
    return sorted(latency for of_one in found for latency in of_one)


def memory_mib(served: Served) -> float:
    pages = int(Path(f"/proc/{served.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor_seconds(served: Served) -> float:
    ticks = Path(f"/proc/{served.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def figures(cases: list[tuple[int, int]], seconds: float) -> list[dict[str, float]]:
    """For each number of busy and idle streams: latencies in ms, and what of processor and memory the server takes."""
    rows = []
    with (
        tempfile.TemporaryDirectory() as directory,
        serving("embedded", Path(directory), adapters=BUNDLES, log_level="warning", dtype="auto") as served,
    ):
        url = served.url.replace("http://", "ws://")
        asyncio.run(measure(url, 1, 0, 3.0))  # the adapter is loaded, the code warm
        for count, idle in cases:
            before, began = processor_seconds(served), time.monotonic()
            latencies = asyncio.run(measure(url, count, idle, seconds))
            cores = (processor_seconds(served) - before) / (time.monotonic() - began)
            p50, p95 = (1000 * latencies[int(share * len(latencies))] for share in (0.5, 0.95))
            row = {"busy": count, "idle": idle, "windows": len(latencies), "p50": p50, "p95": p95}
            rows.append(row | {"max": 1000 * latencies[-1], "cores": cores, "MiB": memory_mib(served)})
    return rows


if __name__ == "__main__":
    count, idle, seconds = (*map(int, sys.argv[1:]), *(20, 200, 15)[len(sys.argv) - 1 :])
    table = figures([(1, 0), (1, idle), (count, idle)], seconds)
    print("".join(f"{name:>10}" for name in table[0]))
    for row in table:
        print("".join(f"{value:>10.2f}" if isinstance(value, float) else f"{value:>10}" for value in row.values()))
