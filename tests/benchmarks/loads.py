"""Do loads stall others? Residents' times while 200 other adapters load and evict, and more hot adapters than slots.

python -m tests.benchmarks.loads
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.engine.engine import Engine
from service.registry.store import AdapterVersion
from tests.benchmarks.tenants import clip, milliseconds, open_tenants, quantile, show, write_json
from tests.engine.asking import infer

SLOTS = 16
RESIDENTS = 4
OTHERS = 200
LOADS_A_SECOND = 10
BUSY = 0.3  # share of its time that the device spends on requests: more, and it is the queue that is measured


@dataclass(slots=True)
class Figures:
    """Milliseconds of requests, by what went on meanwhile."""

    times: dict[str, list[float]] = field(default_factory=dict)

    def rows(self) -> list[dict[str, str | float]]:
        """One for each entry, beside the first entry of the same kind: what stands before the colon."""
        rows: list[dict[str, str | float]] = []
        for what, times in self.times.items():
            kind = what.split(":")[0]
            base = next(of for other, of in self.times.items() if other.split(":")[0] == kind)
            p50, p99 = quantile(times, 0.5), quantile(times, 0.99)
            ratios = {"p50 ratio": p50 / quantile(base, 0.5), "p99 ratio": p99 / quantile(base, 0.99)}
            rows.append({"": what, "requests": len(times), "p50, ms": p50, "p99, ms": p99, **ratios})
        return rows


def main(rounds: int = OTHERS // LOADS_A_SECOND, hot_seconds: float = 10.0) -> None:
    figures = Figures()
    with tempfile.TemporaryDirectory() as directory:
        for source, cache in (("disk", 0), ("host memory", 512)):
            tenants = open_tenants(Path(directory), SLOTS + OTHERS, adapter_slots=SLOTS, host_cache_mb=cache)
            tenants.engine.start()
            try:
                asyncio.run(_bystanders(tenants.engine, tenants.versions, source, rounds, figures))
                if not cache:
                    for count in (SLOTS, 2 * SLOTS):
                        times = asyncio.run(_hot(tenants.engine, tenants.versions[:count], hot_seconds))
                        figures.times[f"hot adapters: {count} on {SLOTS} slots"] = times
            finally:
                tenants.engine.stop(5.0)
    rows = figures.rows()
    shown = [tuple(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()) for row in rows]
    show(f"Loads beside requests of 0.64 s, embedded backbone, {SLOTS} slots", tuple(rows[0]), shown)
    write_json("loads", rows)


async def _bystanders(
    engine: Engine, versions: Sequence[AdapterVersion], source: str, rounds: int, figures: Figures
) -> None:
    """Requests to pinned adapters, in turns of a second with and without loads of the others, so as to share noise."""
    residents, others = versions[:RESIDENTS], versions[SLOTS:]
    for version in residents:
        await engine.device.pin(version)
        await infer(engine, [clip()], [version])
    if source != "disk":
        for version in others:
            await engine.device.load(version)
    rate = await _rate(engine, residents)
    quiet = figures.times.setdefault(f"residents, others from {source}: nothing loads", [])
    noisy = figures.times.setdefault(f"residents, others from {source}: {LOADS_A_SECOND} loads a second", [])
    per_round = LOADS_A_SECOND
    for i in range(rounds):
        await _ask(engine, residents, rate, quiet)
        loads = asyncio.create_task(_load(engine, others[i * per_round : (i + 1) * per_round]))
        await _ask(engine, residents, rate, noisy)
        await loads


async def _rate(engine: Engine, residents: Sequence[AdapterVersion], tries: int = 40) -> int:
    """Requests a second that keep the device as busy as wanted; never so few that there is no p99."""
    started = time.perf_counter()
    for i in range(tries):
        await infer(engine, [clip()], [residents[i % len(residents)]])
    return max(10, round(BUSY * tries / (time.perf_counter() - started)))


async def _ask(engine: Engine, residents: Sequence[AdapterVersion], rate: int, times: list[float]) -> None:
    """A second of requests at random moments, each on its own."""

    async def one(at: float, version: AdapterVersion) -> None:
        await asyncio.sleep(at)
        started = time.perf_counter()
        await infer(engine, [clip()], [version])
        times.append(milliseconds(started))

    moments = random.Random(len(times)).sample(range(1000), rate)
    await asyncio.gather(*(one(at / 1000, residents[i % len(residents)]) for i, at in enumerate(moments)))


async def _load(engine: Engine, versions: Sequence[AdapterVersion]) -> None:
    """Loads spread over a second."""
    for version in versions:
        asleep = asyncio.create_task(asyncio.sleep(1 / LOADS_A_SECOND))
        await engine.device.load(version)
        await asleep


async def _hot(engine: Engine, versions: Sequence[AdapterVersion], seconds: float) -> list[float]:
    """Times with as many clients as `SLOTS`, each asking the hot adapters in turn; the first fifth warms up."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def client(first: int) -> None:
        turn = first
        while time.perf_counter() < end:
            started = time.perf_counter()
            await infer(engine, [clip()], [versions[turn % len(versions)]])
            times.append(milliseconds(started))
            turn += 5

    await asyncio.gather(*(client(i) for i in range(SLOTS)))
    return times[len(times) // 5 :]


if __name__ == "__main__":
    main()
