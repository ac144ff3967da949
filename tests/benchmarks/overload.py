"""What an overload looks like over HTTP: how fast 429 comes, and whether the event loop still answers others.

python -m tests.benchmarks.overload
"""

import asyncio
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.model.loading import load_backbone
from service.settings import EMBEDDED
from tests.benchmarks.served import Connection, get, post, serving
from tests.benchmarks.tenants import milliseconds, quantile, show, write_json
from tests.bundles import random_bundle
from tests.synthesis import encode, noise

CLIENTS = 32
FLOOD_A_SECOND = 400  # of requests of 2 s to one adapter: many times what two cores answer
QUEUE_SECONDS = 40.0

Times = Mapping[str, Sequence[float]]  # milliseconds, by who asked and what was answered


def main(seconds: float = 8.0) -> None:
    spec = load_backbone(EMBEDDED, "cpu", "float32").spec
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        section = {"sampling_rate": 16000, "window_frames": 64, "windows": None}
        for name in ("busy", "quiet"):
            random_bundle(directory / "bundles", spec, name, input=section)
        bundles = directory / "bundles"
        with serving(directory / "data", adapters=bundles, adapter_slots=8, queue_seconds=QUEUE_SECONDS) as served:
            alone = asyncio.run(_measure(served.url, 0, seconds))
            beside = asyncio.run(_measure(served.url, CLIENTS, seconds))
    kinds = sorted({*alone, *beside})
    rows = [(kind, *_figures(alone.get(kind, ())), *_figures(beside.get(kind, ()))) for kind in kinds]
    columns = ("", *("alone: n", "p50, ms", "p99, ms"), *("flooded: n", "p50, ms", "p99, ms"))
    show(f"One adapter flooded by {CLIENTS} clients, {FLOOD_A_SECOND} requests a second of 2 s", columns, rows)
    write_json("overload", {"columns": columns, "rows": rows})


async def _measure(url: str, clients: int, seconds: float) -> Times:
    times: dict[str, list[float]] = defaultdict(list)
    end = time.perf_counter() + seconds

    async def ask(who: str, request: bytes, pause: float) -> None:
        connection = Connection(url)
        while time.perf_counter() < end:
            started = time.perf_counter()
            times[f"{who} {await connection.ask(request)}"].append(milliseconds(started))
            await asyncio.sleep(max(0.0, pause - (time.perf_counter() - started)))
        connection.close()

    flood = post("/v1/classify?adapter=busy", encode(noise(2.0, seed=1)))
    quiet = post("/v1/classify?adapter=quiet", encode(noise(0.5, seed=2)))
    busy = [ask("busy", flood, clients / FLOOD_A_SECOND) for _ in range(clients)]
    await asyncio.gather(ask("quiet", quiet, 0.05), ask("GET /healthz", get("/healthz"), 0.05), *busy)
    return times


def _figures(times: Sequence[float]) -> tuple[str, str, str]:
    if not times:
        return "0", "-", "-"
    return str(len(times)), f"{quantile(times, 0.5):.1f}", f"{quantile(times, 0.99):.1f}"


if __name__ == "__main__":
    main()
