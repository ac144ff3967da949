"""Many adapters of random weights on the embedded backbone, for the benchmarks of the service around the forward."""

import json
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from service.audio.waveform import Waveform
from service.engine.engine import Engine
from service.model.backbone import Backbone
from service.model.loading import load_backbone
from service.registry.store import AdapterVersion, Registry
from service.settings import EMBEDDED, Settings
from service.telemetry import Telemetry
from tests.bundles import random_bundle
from tests.engine.asking import open_engine

OUTPUT = Path("runs/bench")


@dataclass(frozen=True, slots=True)
class Tenants:
    """An engine that has not been started yet, and its registered adapters."""

    backbone: Backbone
    registry: Registry
    engine: Engine
    versions: Sequence[AdapterVersion]


def open_tenants(directory: Path, count: int, backbone: Backbone | None = None, **settings: Any) -> Tenants:
    """Registers `adapter-00000` and so on, as far as they are not there, and opens an engine over them."""
    backbone = backbone or load_backbone(EMBEDDED, "cpu", "auto")
    registry = Registry(directory / "data", backbone.spec)
    files = random_bundle(directory, backbone.spec, "adapter", prompt_length=8, bottleneck_dim=16)
    config = json.loads(files.config)
    known = {record.name for record in list(registry.walk())}
    for i in range(count):
        if (name := f"adapter-{i:05}") not in known:
            registry.publish(name, json.dumps(config | {"name": name}).encode(), files.weights)
    versions = [registry.resolve(f"adapter-{i:05}") for i in range(count)]
    engine = open_engine(backbone, registry, Settings(**settings), Telemetry())
    return Tenants(backbone, registry, engine, versions)


def clip(seconds: float = 0.64, seed: int = 0) -> Waveform:
    samples = np.random.default_rng(seed).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)
    return Waveform(samples, 16_000, 1)


def resident_mib() -> float:
    """Memory of this process now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the peak is the next best
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def milliseconds(since: float) -> float:
    return (time.perf_counter() - since) * 1000


def write_json(name: str, figures: Any) -> None:
    """Keeps what a benchmark found as `runs/bench/NAME.json`."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
