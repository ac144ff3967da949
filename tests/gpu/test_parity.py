"""The device's forward against float32 on the CPU, and each row of a mixed batch against itself alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.loading import load_backbone
from tests.gpu.conftest import IS_DRY
from tests.model.reference import relative_error
from tests.model.test_parity import adapters_of, inputs_of

pytestmark = pytest.mark.gpu
EXACT = 1e-5
ALONE = {"float32": EXACT, "bfloat16": 1e-2, "float16": 1e-2}  # a row of a mixed batch, of itself alone
NEAR = {"float32": EXACT, "bfloat16": 3e-2, "float16": 3e-2}  # of float32 on the CPU
DTYPES = ("float32", "bfloat16") if IS_DRY else tuple(ALONE)  # a CPU has no float16 to serve in

Told = Callable[[str, object], None]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_device_computes_what_the_cpu_does(
    directory: Path, exact: Backbone, device: str, dtype: str, record_property: Told
) -> None:
    backbone = load_backbone(str(directory), device, dtype, for_inference=True)
    adapters = adapters_of(exact)
    slots = [0, *range(1, len(adapters) + 1), 1, 2]
    inputs = inputs_of(exact, len(slots))
    bank = Bank.of(backbone, adapters)
    with torch.inference_mode():
        mixed = on_cpu(backbone.forward(inputs, bank, slots))
        expected = exact.forward(inputs, Bank.of(exact, adapters), slots)
        alone = torch.cat([on_cpu(backbone.forward(inputs[i : i + 1], bank, [slot])) for i, slot in enumerate(slots)])
    record_property("difference from float32 on the CPU", f"{relative_error(mixed, expected):.1e}")
    record_property("difference from each row alone", f"{relative_error(mixed, alone):.1e}")
    assert relative_error(mixed, expected) < NEAR[dtype]
    assert relative_error(mixed, alone) < ALONE[dtype]


def test_heads_compute_what_the_cpu_does(directory: Path, exact: Backbone, device: str) -> None:
    backbone = load_backbone(str(directory), device, "float32", for_inference=True)
    adapters = adapters_of(exact)
    bank = Bank.of(backbone, adapters)
    embeddings = torch.randn(4, exact.spec.embedding_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        there = Bank.of(exact, adapters)
        for slot in range(1, len(adapters) + 1):
            expected = there.select([slot] * 4).outputs(embeddings)
            here = on_cpu(bank.select([slot] * 4).outputs(embeddings.to(backbone.device)))
            assert relative_error(here, expected) < EXACT


def on_cpu(values: Tensor) -> Tensor:
    return values.float().cpu()
