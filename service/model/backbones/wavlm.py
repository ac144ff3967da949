"""WavLM (arXiv 2110.13900): wav2vec 2.0's layers, whose attention has a gated bias by relative position."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from service.model.attention import Attention
from service.model.backbones.wav2vec2 import Wav2Vec2Backbone
from service.model.layers import split_heads

_KEPT_LENGTHS = 8  # position biases that are kept, the oldest go first


@dataclass(frozen=True, slots=True)
class PositionBias:
    """A bias `[H, T, T]` by how far a key is from a query, in buckets that widen with the distance, for all layers.

    The same buckets as T5's. Prompts and prefixes lie at no position: their keys have bias 0.
    """

    table: Tensor  # [buckets, H]
    farthest: int  # positions, from where on all are in the last bucket
    kept: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, tokens: int) -> Tensor:
        if tokens not in self.kept:
            if len(self.kept) >= _KEPT_LENGTHS:
                self.kept.pop(next(iter(self.kept)))
            self.kept[tokens] = self._compute(tokens)
        return self.kept[tokens]

    def _compute(self, tokens: int) -> Tensor:
        positions = torch.arange(tokens, device=self.table.device)
        distance = positions[None, :] - positions[:, None]
        half = len(self.table) // 2
        exact = half // 2
        behind = (distance > 0).long() * half
        distance = distance.abs()
        far = (distance.float() / exact).log() / math.log(self.farthest / exact) * (half - exact) + exact
        buckets = behind + torch.where(distance < exact, distance, far.clamp_min(0).long().clamp_max(half - 1))
        return self.table[buckets].permute(2, 0, 1)


@dataclass(frozen=True, slots=True)
class GatedBias:
    """One layer's gate on the shared bias, from what the attention reads (section 3.2 of the paper)."""

    weight: Tensor  # [8, d]
    bias: Tensor  # [8]
    constant: Tensor  # [1, H, 1, 1]
    positions: PositionBias

    def __call__(self, x: Tensor) -> Tensor:
        """What attention reads `[B, T, D]` -> bias of its scores `[B, H, T, T]`, float32."""
        heads = split_heads(x.float(), self.constant.shape[1])  # [B, H, T, d]
        gates = functional.linear(heads, self.weight, self.bias).unflatten(3, (2, 4)).sum(dim=4)  # type: ignore[no-untyped-call]
        first, second = torch.sigmoid(gates).chunk(2, dim=3)
        gate: Tensor = first * (second * self.constant - 1.0) + 2.0
        return gate * self.positions(x.shape[1])


class WavLMBackbone(Wav2Vec2Backbone):
    _shared_bias: PositionBias | None = None

    def _load_attention(self, i: int) -> Attention:
        if self._shared_bias is None:
            table = self._tensors["encoder.layers.0.attention.rel_attn_embed.weight"].to(self.device)
            self._shared_bias = PositionBias(table, self._config.max_bucket_distance)
        weight, bias, constant = (
            self._tensors[f"{self.layers_name}.{i}.attention.{part}"].to(self.device)
            for part in ("gru_rel_pos_linear.weight", "gru_rel_pos_linear.bias", "gru_rel_pos_const")
        )
        return replace(super()._load_attention(i), bias=GatedBias(weight, bias, constant, self._shared_bias))
