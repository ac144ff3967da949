"""Kernels for inference equal the plain ones in their own dtype, whatever the architecture and the mix of adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.cpu import convolution
from service.model.cpu.convolution import FourierConvolution, convolution_dtype
from service.model.kernels import PLAIN, pick_kernels
from service.model.layers import PositionConvolution
from service.model.loading import load_backbone
from tests.backbones import adapter_spec, random_adapter, save_tiny_wav2vec2
from tests.model.reference import relative_error

SLOTS = [1, 2, 0, 4, 3, 1]


@pytest.fixture(scope="module", params=["ast", "wav2vec2", "wav2vec2-layer-norm"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "wav2vec2-layer-norm":
        return save_tiny_wav2vec2(tmp_path_factory.mktemp("layer-norm"), norm="layer")
    fixture: Path = request.getfixturevalue(f"tiny_{request.param}_dir")
    return fixture


@pytest.fixture(scope="module")
def plain(directory: Path) -> Backbone:
    return load_backbone(str(directory), "cpu", "float32")


def answers(backbone: Backbone, frames: int, slots: list[int], rows: slice = slice(None)) -> Tensor:
    """Mixed prompts, bottlenecks and residuals; the same audio for each backbone."""
    specs = [adapter_spec(4, 8), adapter_spec(7, 3, residual=True), adapter_spec(0, 8), adapter_spec(40, 0)]
    bank = Bank.of(backbone, [random_adapter(spec, backbone.spec, i, std=0.2) for i, spec in enumerate(specs)])
    inputs = torch.randn((len(SLOTS), *backbone.input_shape(frames)), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return backbone.forward(inputs[rows], bank, slots)


@pytest.mark.parametrize("frames", [64, 200])
def test_float32_equals_the_plain_path(directory: Path, plain: Backbone, frames: int) -> None:
    fast = load_backbone(str(directory), "cpu", "float32", for_inference=True)
    assert relative_error(answers(fast, frames, SLOTS), answers(plain, frames, SLOTS)) < 1e-5


@pytest.mark.parametrize("frames", [64, 200])
def test_bfloat16_stays_near(directory: Path, plain: Backbone, frames: int) -> None:
    fast = load_backbone(str(directory), "cpu", "bfloat16", for_inference=True)
    mixed = answers(fast, frames, SLOTS)
    alone = torch.cat([answers(fast, frames, [slot], slice(i, i + 1)) for i, slot in enumerate(SLOTS)])
    half = load_backbone(str(directory), "cpu", "bfloat16")
    assert relative_error(mixed, alone) < 1e-2
    assert relative_error(mixed, answers(half, frames, SLOTS)) < 3e-2
    assert relative_error(mixed, answers(plain, frames, SLOTS)) < 3e-2


@pytest.mark.parametrize(("stride", "right"), [(8, 0.0), (8, 1.0), (3, 0.0)])
def test_a_dtype_that_convolves_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch, stride: int, right: float) -> None:
    """As oneDNN does in bfloat16 with AMX for some shapes: what comes out has nothing to do with the input."""
    direct = convolution.functional.conv1d

    def faulty(x: Tensor, *rest: Any, **more: Any) -> Tensor:
        out: Tensor = direct(x, *rest, **more)
        return out if x.dtype is torch.float32 or right else out.roll(1, dims=2)

    monkeypatch.setattr(convolution.functional, "conv1d", faulty)
    weight = torch.randn(24, 24, 3, generator=torch.Generator().manual_seed(0))  # a shape that is right everywhere
    dtype = convolution_dtype(weight, torch.bfloat16, torch.device("cpu"), stride, groups=1)
    assert dtype is (torch.bfloat16 if right else torch.float32)


def test_float32_of_a_row_does_not_depend_on_the_batch(directory: Path) -> None:
    fast = load_backbone(str(directory), "cpu", "float32", for_inference=True)
    alone = torch.cat([answers(fast, 96, [slot], slice(i, i + 1)) for i, slot in enumerate(SLOTS)])
    assert relative_error(answers(fast, 96, SLOTS), alone) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_weights_quantise_each_clip_by_itself(directory: Path, plain: Backbone, dtype: str) -> None:
    quantised = load_backbone(str(directory), "cpu", dtype, for_inference=True, weights="int8")
    mixed = answers(quantised, 96, SLOTS)
    alone = torch.cat([answers(quantised, 96, [slot], slice(i, i + 1)) for i, slot in enumerate(SLOTS)])
    assert relative_error(mixed, alone) < 1e-2  # a last bit that differs may flip a rounding to 8 bits
    assert relative_error(mixed, answers(plain, 96, SLOTS)) < 0.1  # an accuracy cost is what int8 is asked for


def test_fine_tuned_and_trained_backbones_take_the_plain_path(tiny_ast: Backbone) -> None:
    assert tiny_ast._kernels is PLAIN


def test_int8_without_onednn_is_refused() -> None:
    with pytest.raises(ValueError, match="int8 weights need a CPU"):
        pick_kernels(torch.device("meta"), torch.bfloat16, "int8")


@pytest.mark.parametrize("length", [1, 62, 129, 300])
@pytest.mark.parametrize("kernel", [128, 19])
def test_fourier_convolution_equals_the_direct_one(length: int, kernel: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(24, 6, kernel, generator=generator), torch.randn(24, generator=generator)
    hidden = torch.randn(3, length, 24, generator=generator)
    plain = PositionConvolution(weight, bias, groups=4)
    assert relative_error(FourierConvolution.of(plain)(hidden), plain(hidden)) < 1e-5
