"""What HTTP costs: requests a second of one process whose backbone is trivially small, and what its event loop can do.

python -m tests.benchmarks.throughput
"""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from service.model.loading import load_backbone
from tests.backbones import save_tiny_ast
from tests.benchmarks.served import Connection, Served, get, post, serving
from tests.benchmarks.tenants import milliseconds, quantile, show, write_json
from tests.bundles import random_bundle
from tests.synthesis import encode, noise

CLIENTS = 32
SECONDS = (1.28, 10.24)


@dataclass(frozen=True, slots=True)
class Rate:
    """What one kind of request reached.

    Args:
        p50, p99: milliseconds.
        loop, process: milliseconds of CPU time that one request costs the event loop's thread, and the whole process.
    """

    what: str
    a_second: float
    p50: float
    p99: float
    loop: float
    process: float

    @property
    def most(self) -> float:
        """Requests a second where the event loop's thread has a core of its own and nothing else is the bound."""
        return 1000 / self.loop

    def values(self) -> tuple[float, ...]:
        return self.a_second, self.p50, self.p99, self.loop, self.process, self.most


def main(seconds: float = 6.0) -> None:
    with tempfile.TemporaryDirectory() as place, small_service(Path(place)) as served:
        kinds = {"GET /healthz": get("/healthz"), "POST, answered 404": post("/v1/classify?adapter=nobody", b"0")}
        for length in SECONDS:
            clip = encode(noise(length, seed=1))
            kinds[f"POST, {length} s of wav"] = post("/v1/classify?adapter=small", clip)
        rates = [asyncio.run(measure(served, what, request, seconds)) for what, request in kinds.items()]
    rows = [(rate.what, *(f"{value:.4g}" for value in rate.values())) for rate in rates]
    columns = ("", "requests/s", "p50, ms", "p99, ms", "CPU of the loop, ms", "of the process, ms", "loop's most, /s")
    show(f"One process, {CLIENTS} clients, a trivially small backbone", columns, rows)
    write_json("throughput", [asdict(rate) | {"most": rate.most} for rate in rates])


@contextmanager
def small_service(directory: Path) -> Iterator[Served]:
    """A service whose backbone costs next to nothing, with one adapter `small` that reads 1.28 s."""
    checkpoint = save_tiny_ast(directory / "backbone")
    spec = load_backbone(str(checkpoint), "cpu", "float32").spec
    section = {"sampling_rate": 16000, "window_frames": 128, "windows": 1, "mean": -6.0, "std": 5.0}
    random_bundle(directory / "bundles", spec, "small", input=section)
    limits = {"adapter_slots": 4, "max_prompt_length": 4, "max_bottleneck_dim": 4}
    with serving(directory / "data", backbone=checkpoint, adapters=directory / "bundles", **limits) as served:
        yield served


async def measure(served: Served, what: str, request: bytes, seconds: float) -> Rate:
    """Closed loop: every client asks again as soon as it is answered. The first fifth warms up."""
    times: list[float] = []
    statuses: Counter[int] = Counter()

    async def client(end: float) -> None:
        connection = Connection(served.url)
        while time.perf_counter() < end:
            started = time.perf_counter()
            statuses[await connection.ask(request)] += 1
            times.append(milliseconds(started))
        connection.close()

    async def clients(for_seconds: float) -> None:
        end = time.perf_counter() + for_seconds
        await asyncio.gather(*(client(end) for _ in range(CLIENTS)))

    await clients(seconds / 5)
    times.clear()
    before, started = served.cpu_seconds(), time.perf_counter()
    await clients(seconds)
    taken = time.perf_counter() - started
    if set(statuses) != {404 if "404" in what else 200}:
        raise RuntimeError(f"{what} was answered {dict(statuses)}")
    loop, process = (
        1000 * (after - first) / len(times) for after, first in zip(served.cpu_seconds(), before, strict=True)
    )
    return Rate(what, len(times) / taken, quantile(times, 0.5), quantile(times, 0.99), loop, process)


if __name__ == "__main__":
    main()
