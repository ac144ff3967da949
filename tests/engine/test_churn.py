"""Loads and unloads without end: memory, threads and open files stay where they were."""

from pathlib import Path

import pytest

from service.model.loading import load_backbone
from tests.engine.churn import churned

MANY = pytest.param(1_000, 100_000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])


@pytest.mark.parametrize(("first", "loads"), [(200, 600), MANY])
def test_memory_is_flat_over_loads_and_unloads(tiny_ast_dir: Path, tmp_path: Path, first: int, loads: int) -> None:
    backbone = load_backbone(str(tiny_ast_dir), for_inference=True)
    assert churned(backbone, tmp_path, first, loads).faults() == []
