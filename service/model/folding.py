"""An adapter as a slot of the bank holds it: what can be computed once, when it is loaded, has been computed.

A prompt meets the real tokens only as keys and values of its layer (contract section 3), which depend on no input.
Knows one adapter and its backbone, neither slots nor names.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from service.model.adapter import AdapterWeights
from service.model.heads import Head, move_head

if TYPE_CHECKING:
    from service.model.backbone import Backbone


@dataclass(frozen=True, slots=True)
class FoldedAdapter:
    """An adapter as a slot holds it: prompts as keys and values, `adapter_scale` in the up-projection."""

    prompt_length: int
    bottleneck_dim: int
    residual: bool
    head: Head
    keys: Tensor | None  # [L, H, P, d]
    values: Tensor | None  # [L, H, P, d]
    down_weight: Tensor | None  # [L, D, R]
    down_bias: Tensor | None  # [L, 1, R]
    up_weight: Tensor | None  # [L, R, D]
    up_bias: Tensor | None  # [L, 1, D]
    conv_kernel: int = 0
    conv_weight: Tensor | None = None  # [L, R, K]
    conv_bias: Tensor | None = None  # [L, 1, R]
    layer_weights: Tensor | None = None  # [L + 1], behind the softmax
    input_prompt: Tensor | None = None  # [frames, bins]


def fold(weights: AdapterWeights, backbone: "Backbone") -> FoldedAdapter:
    """Folds an adapter for its backbone, in float32 on the backbone's device; gradients pass through."""
    spec, device = weights.spec, backbone.device
    keys = values = down = down_bias = up = up_bias = None
    if weights.prompts is not None:
        pairs = [backbone.fold_prompt(i, prompt) for i, prompt in enumerate(weights.prompts.to(device))]
        keys = torch.stack([pair[0] for pair in pairs])
        values = torch.stack([pair[1] for pair in pairs])
    if (
        weights.down_weight is not None
        and weights.down_bias is not None
        and weights.up_weight is not None
        and weights.up_bias is not None
    ):
        down = weights.down_weight.to(device).transpose(1, 2)
        down_bias = weights.down_bias.to(device).unsqueeze(1)
        up = weights.up_weight.to(device).transpose(1, 2) * spec.adapter_scale
        up_bias = weights.up_bias.to(device).unsqueeze(1) * spec.adapter_scale
    conv = conv_bias = layer_weights = picture = None
    if weights.conv_weight is not None and weights.conv_bias is not None:
        conv, conv_bias = weights.conv_weight.to(device), weights.conv_bias.to(device).unsqueeze(1)
    if weights.layer_weights is not None:
        layer_weights = weights.layer_weights.to(device).softmax(0)
    if weights.input_prompt is not None:
        picture = weights.input_prompt.picture().to(device)
    return FoldedAdapter(
        prompt_length=spec.prompt_length,
        bottleneck_dim=spec.bottleneck_dim,
        residual=spec.adapter_residual and spec.bottleneck_dim > 0,
        head=move_head(weights.head, device),
        keys=keys,
        values=values,
        down_weight=down,
        down_bias=down_bias,
        up_weight=up,
        up_bias=up_bias,
        conv_kernel=spec.conv_kernel,
        conv_weight=conv,
        conv_bias=conv_bias,
        layer_weights=layer_weights,
        input_prompt=picture,
    )
