"""Loads and unloads without end: memory, threads and open files stay where they were."""

import asyncio
import gc
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from service.engine.engine import Engine
from service.engine.slots import State
from service.model.backbone import Backbone
from service.model.loading import load_backbone
from service.registry.store import AdapterVersion
from tests.benchmarks.tenants import clip, open_tenants, resident_mib

ADAPTERS, SLOTS = 96, 8
MOST_MIB = 16.0  # that memory may grow after the first loads
MOST_THREADS = 3  # that may come: of the pools, which start them as they are needed
MOST_FILES = 3  # that may come: the catalogue's connections are pooled too; a leak would leave one for each load
MANY = pytest.param(1_000, 100_000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])


@pytest.mark.parametrize(("first", "loads"), [(200, 600), MANY])
def test_memory_is_flat_over_loads_and_unloads(tiny_ast_dir: Path, tmp_path: Path, first: int, loads: int) -> None:
    backbone = load_backbone(str(tiny_ast_dir), for_inference=True)
    # Host memory for less than half of them: they come from there and from disk, and leave both.
    limits = {"max_prompt_length": 8, "max_bottleneck_dim": 16, "host_cache_mb": 1}
    tenants = open_tenants(tmp_path, ADAPTERS, backbone, adapter_slots=SLOTS, **limits)
    tenants.engine.start()
    try:
        asyncio.run(_churn(tenants.engine, tenants.versions, first))
        before = _held(backbone)
        asyncio.run(_churn(tenants.engine, tenants.versions, loads - first))
        after = _held(backbone)
    finally:
        tenants.engine.stop(5.0)
    growth = {what: round(after[what] - before[what], 1) for what in before}
    said = f"{loads - first:,} loads and unloads after the first {first:,} add {growth} to {before}"
    print(said)
    assert growth["host MiB"] < MOST_MIB, said
    assert growth["device MiB"] < MOST_MIB, said
    assert growth["threads"] <= MOST_THREADS, said
    assert growth["open files"] <= MOST_FILES, said


async def _churn(engine: Engine, versions: Sequence[AdapterVersion], loads: int) -> None:
    """So many loads; every second adapter is unloaded by hand, the others are evicted. Each hundredth is asked."""
    for i in range(loads):
        version = versions[i % len(versions)]
        await engine.load(version)
        if i % 100 == 0:
            await engine.infer([clip()], [version])
        if i % 2:
            await engine.unload(version)
            assert engine.residency(version) is State.REGISTERED


def _held(backbone: Backbone) -> dict[str, float]:
    gc.collect()
    on_device = torch.cuda.memory_allocated() if backbone.device.type == "cuda" else 0
    open_files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    return {
        "host MiB": round(resident_mib(), 1),
        "device MiB": round(on_device / 2**20, 1),
        "threads": threading.active_count(),
        "open files": open_files,
    }
