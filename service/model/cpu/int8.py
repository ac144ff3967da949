"""Linear layers with 8-bit weights: quantised once, activations quantised clip by clip; fast on CPUs with VNNI.

Weights are symmetric, a scale for each output; activations asymmetric, a scale for each row of the batch, so that no
clip's answer depends on the others. Adapters, attention, norms and convolutions stay as they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from service.model.cpu.prepacked import FUSED_GELU, NO_ACTIVATION
from service.model.layers import Activation, Linear, Projection, is_gelu

# Of 256, one to spare at each end for rounding; half as many where sums of two products saturate at 16 bits.
_LEVELS = 254 if torch.cpu._is_vnni_supported() else 126
_SMALLEST_RANGE = 1e-12
_ROWS = 128  # that oneDNN lays the weights out for


@dataclass(frozen=True, slots=True)
class Int8Linear(Projection):
    weight: Tensor  # opaque
    scales: Tensor  # [out]
    zero_points: Tensor  # [out]
    bias: Tensor | None  # [out], float32
    dtype: torch.dtype  # of the output
    activation: Activation | None
    fused: bool  # whether the activation runs inside the product

    def __call__(self, x: Tensor) -> Tensor:
        """`[B, T, in]` -> `[B, T, out]`."""
        if self.fused:
            return torch.stack([self._clip(clip, FUSED_GELU) for clip in x])
        return Projection.__call__(self, x)

    def linear(self, x: Tensor) -> Tensor:
        return torch.stack([self._clip(clip, NO_ACTIVATION) for clip in x])

    def _clip(self, x: Tensor, behind: tuple[str, list[float], str]) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        lowest, highest = (float(bound) for bound in torch.aminmax(x))
        lowest, highest = min(lowest, 0.0), max(highest, 0.0)
        scale = max((highest - lowest) / _LEVELS, _SMALLEST_RANGE)
        zero_point = round(-lowest / scale)
        quantised = x.float().mul(1 / scale).add_(zero_point + 0.5).to(torch.uint8)
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            quantised,
            scale,
            zero_point,
            self.weight,
            self.scales,
            self.zero_points,
            self.bias,
            1.0,  # the output is not quantised
            0,
            self.dtype,
            *behind,
        )
        return product


def quantise_linear(plain: Linear) -> Projection:
    weight = plain.weight.float()
    scales = (weight.abs().amax(dim=1) / 127).clamp_min(_SMALLEST_RANGE)
    quantised = (weight / scales[:, None]).round().to(torch.int8)
    return Int8Linear(
        weight=torch.ops.onednn.qlinear_prepack(quantised, [_ROWS, weight.shape[1]]),
        scales=scales,
        zero_points=torch.zeros(len(weight), dtype=torch.long),
        bias=None if plain.bias is None else plain.bias.float(),
        dtype=plain.weight.dtype,
        activation=plain.activation,
        fused=is_gelu(plain.activation),
    )
