"""Is anything slower with 5,000 registered adapters than with 10? Start, memory, listing, load time, batches.

python -m tests.benchmarks.many_adapters [COUNT ...]
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from service.engine.scheduler import Scheduler
from service.model.backbone import Backbone
from service.model.loading import load_backbone
from service.settings import EMBEDDED
from tests.benchmarks.served import Served, serving
from tests.benchmarks.tenants import OUTPUT, Tenants, milliseconds, open_tenants, quantile, show, write_json
from tests.engine.simulation import job

SLOTS = 64
FEW = 10
PAGE = 100
ROUNDS = 20  # of loads, each of as many as FEW


@dataclass(frozen=True, slots=True)
class Figures:
    """What so many registered adapters cost.

    Args:
        upload: milliseconds an adapter.
        start, start_cpu: seconds from the start of the process to its being ready, and what it computed meanwhile.
        memory: MiB of the process that is ready.
        page: milliseconds of one page of the list over HTTP, median.
        load: milliseconds from disk to the device, median, adapters in random order.
        load_ratio: to that with FEW registered adapters, taken in turns.
        batch: microseconds to form a batch of 8 rows while so many adapters wait.
    """

    adapters: int
    upload: float
    start: float
    start_cpu: float
    memory: float
    page: float
    load: float
    load_ratio: float
    batch: float


UNITS = {
    "adapters": "",
    "upload": "ms",
    "start": "s",
    "start_cpu": "s",
    "memory": "MiB",
    "page": f"ms for {PAGE}",
    "load": "ms",
    "load_ratio": "x",
    "batch": "microseconds",
}


def main(counts: Sequence[int] = (10, 100, 1000, 5000)) -> None:
    backbone = load_backbone(EMBEDDED, "cpu", for_inference=True)
    with tempfile.TemporaryDirectory() as place:
        few = open_tenants(Path(place) / "few", FEW, backbone, adapter_slots=SLOTS, host_cache_mb=0)
        few.engine.start()
        try:
            found = [measure(Path(place) / "many", count, backbone, few) for count in counts]
        finally:
            few.engine.stop(1.0)
    columns = tuple(f"{name.replace('_', ' ')}{f', {unit}' if unit else ''}" for name, unit in UNITS.items())
    rows = [tuple(f"{value:,.4g}" for value in asdict(figures).values()) for figures in found]
    show(f"Registered adapters, embedded backbone, {SLOTS} slots", columns, rows)
    write_json("many_adapters", [asdict(figures) for figures in found])
    draw(found, OUTPUT / "many_adapters.png")


def measure(directory: Path, count: int, backbone: Backbone, few: Tenants) -> Figures:
    """Registers what is missing and measures; the directory is kept for the next, larger count."""
    started, before = time.perf_counter(), len(list((directory / "data").glob("objects/*/*")))
    many = open_tenants(directory, count, backbone, adapter_slots=SLOTS, host_cache_mb=0)
    upload = milliseconds(started) / max(1, count - before)
    many.engine.start()
    try:
        base, loads = asyncio.run(_load_in_turns(few, many))
    finally:
        many.engine.stop(1.0)
    with serving(directory / "data", adapter_slots=SLOTS) as served:
        start = served.start_seconds, served.cpu_seconds()[1]
        memory, page = served.mib, _page(served)
    load = quantile(loads, 0.5)
    ratio, batch = load / quantile(base, 0.5), _batch_microseconds(count)
    return Figures(count, upload, *start, memory, page, load, ratio, batch)


async def _load_in_turns(few: Tenants, many: Tenants) -> tuple[list[float], list[float]]:
    """Milliseconds of loads from disk, of a few adapters and of any of the many, round by round."""
    times: tuple[list[float], list[float]] = ([], [])
    step = max(1, len(many.versions) // FEW)
    for i in range(ROUNDS):
        chosen = [many.versions[(i * 37 + at * step) % len(many.versions)] for at in range(FEW)]
        for tenants, versions, taken in ((few, few.versions, times[0]), (many, chosen, times[1])):
            for version in versions:
                await tenants.engine.device.unload(version)
                started = time.perf_counter()
                await tenants.engine.device.load(version)
                taken.append(milliseconds(started))
    return times


def _page(served: Served) -> float:
    times = []
    for _ in range(30):
        started = time.perf_counter()
        served.http.get(f"/v1/adapters?limit={PAGE}").raise_for_status()
        times.append(milliseconds(started))
    return quantile(times, 0.5)


def _batch_microseconds(lanes: int, batches: int = 200) -> float:
    """Time to take a batch while every adapter has a job queued, and takes its place again."""
    scheduler = Scheduler(8 * 128)
    for i in range(lanes):
        scheduler.push(job(f"adapter-{i}", 128))
    spent = 0.0
    for _ in range(batches):
        started = time.perf_counter()
        batch = scheduler.next_batch(0.0, lambda _: True)
        spent += time.perf_counter() - started
        for one in batch:
            scheduler.push(job(one.flow, 128))
    return spent / batches * 1e6


def draw(found: Sequence[Figures], path: Path) -> None:
    """Every figure over the number of adapters."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [field.name for field in fields(Figures)][1:]
    figure, axes = plt.subplots(1, len(names), figsize=(2.2 * len(names), 2.2), layout="constrained")
    for name, panel in zip(names, axes, strict=True):
        panel.semilogx([one.adapters for one in found], [getattr(one, name) for one in found], marker="o")
        panel.set_ylim(bottom=0)
        panel.set_title(f"{name.replace('_', ' ')}, {UNITS[name]}", fontsize=8)
        panel.tick_params(labelsize=7)
    figure.supxlabel("registered adapters", fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main(*([[int(count) for count in sys.argv[1:]]] if sys.argv[1:] else []))
