"""Loads into the device's slots: what is loaded is what was written, and 10,000 of them leave nothing behind."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.folding import fold
from service.model.loading import load_backbone
from tests.engine.churn import ADAPTERS, churned
from tests.gpu.conftest import IS_DRY
from tests.model.reference import relative_error
from tests.model.test_parity import adapters_of, inputs_of

pytestmark = pytest.mark.gpu
Told = Callable[[str, object], None]


def test_a_slot_holds_what_was_written_last(directory: Path, exact: Backbone, device: str) -> None:
    """A slot that had a longer prompt and a wider bottleneck before keeps nothing of them."""
    backbone = load_backbone(str(directory), device, "float32", for_inference=True)
    adapters = adapters_of(exact)
    inputs = inputs_of(exact, 2)
    bank = Bank(backbone, slots=2)
    with torch.inference_mode():
        for weights in (*adapters, *reversed(adapters)):
            bank.write(1, fold(weights, backbone))
            found = backbone.forward(inputs, bank, [1, 1]).float().cpu()
            fresh = exact.forward(inputs, Bank.of(exact, [weights]), [1, 1])
            assert relative_error(found, fresh) < 1e-5


@pytest.mark.timeout(600)
def test_many_loads_leave_nothing_behind(
    device: str, tiny_ast_dir: Path, tmp_path: Path, record_property: Told
) -> None:
    first, loads, adapters = (50, 100, 16) if IS_DRY else (1_000, 10_000, ADAPTERS)
    backbone = load_backbone(str(tiny_ast_dir), device, for_inference=True)
    began = time.perf_counter()
    growth = churned(backbone, tmp_path, first, loads, adapters)
    record_property("loads", f"{loads:,}")
    record_property("ms a load", f"{1000 * (time.perf_counter() - began) / loads:.1f}")
    record_property("device memory grew by, MiB", f"{growth.device_mib:.1f}")
    record_property("host memory grew by, MiB", f"{growth.host_mib:.1f}")
    assert growth.faults() == []
