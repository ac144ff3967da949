"""Loads and unloads without end, and what they leave behind."""

import asyncio
import gc
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from service.engine.engine import Engine
from service.engine.slots import State
from service.model.backbone import Backbone
from service.registry.store import AdapterVersion
from tests.benchmarks.tenants import clip, open_tenants, resident_mib
from tests.engine.asking import infer

ADAPTERS, SLOTS = 96, 8
MOST_MIB = 16.0  # that memory may grow after the first loads
MOST_THREADS = 3  # that may come: of the pools, which start them as they are needed
MOST_FILES = 3  # that may come: the catalogue's connections are pooled too; a leak would leave one for each load


@dataclass(frozen=True, slots=True)
class Held:
    """What the process holds at one moment, or what it holds more than at another."""

    host_mib: float
    device_mib: float
    threads: int
    files: int

    @classmethod
    def now(cls, backbone: Backbone) -> Self:
        gc.collect()
        on_device = torch.cuda.memory_allocated() if backbone.device.type == "cuda" else 0
        files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
        return cls(resident_mib(), on_device / 2**20, threading.active_count(), files)

    def since(self, before: "Held") -> "Held":
        return Held(
            self.host_mib - before.host_mib,
            self.device_mib - before.device_mib,
            self.threads - before.threads,
            self.files - before.files,
        )

    def faults(self) -> list[str]:
        """What grew more than it may."""
        most = {"host_mib": MOST_MIB, "device_mib": MOST_MIB, "threads": MOST_THREADS, "files": MOST_FILES}
        return [
            f"{name} grew by {getattr(self, name):.1f}" for name, limit in most.items() if getattr(self, name) > limit
        ]


def churned(backbone: Backbone, directory: Path, first: int, loads: int, adapters: int = ADAPTERS) -> Held:
    """What the process holds more after `loads` loads than after the `first` of them."""
    # Host memory for less than half of them: they come from there and from disk, and leave both.
    limits = {"max_prompt_length": 8, "max_bottleneck_dim": 16, "host_cache_mb": 1}
    tenants = open_tenants(directory, adapters, backbone, adapter_slots=SLOTS, **limits)
    tenants.engine.start()
    try:
        asyncio.run(_churn(tenants.engine, tenants.versions, first))
        before = Held.now(backbone)
        asyncio.run(_churn(tenants.engine, tenants.versions, loads - first))
        growth = Held.now(backbone).since(before)
    finally:
        tenants.engine.stop(5.0)
    print(f"{loads - first:,} loads and unloads after the first {first:,} add {growth} to {before}")
    return growth


async def _churn(engine: Engine, versions: Sequence[AdapterVersion], loads: int) -> None:
    """So many loads; every second adapter is unloaded by hand, the others are evicted. Each hundredth is asked."""
    for i in range(loads):
        version = versions[i % len(versions)]
        await engine.device.load(version)
        if i % 100 == 0:
            await infer(engine, [clip()], [version])
        if i % 2:
            await engine.device.unload(version)
            [place] = engine.device.residences([version])
            assert place.state is State.REGISTERED
