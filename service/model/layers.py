"""What both architectures' layers are made of. Knows neither checkpoints nor slots beyond the rows it is given.

Activations between layers stay in float32; matrix products run in the weights' dtype, as autocast would.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from service.model.convolution import RowConvolution


@dataclass(frozen=True, slots=True)
class Linear:
    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer norm in float32."""

    weight: Tensor  # [D]
    bias: Tensor  # [D]
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class RowAdapters:
    """One layer's adapters gathered for the rows of a batch. None where no row has that part."""

    keys: Tensor | None  # [B, H, P, d], the prompt folded into keys
    values: Tensor | None  # [B, H, P, d]
    prompt_mask: Tensor | None  # [B, 1, 1, P], 0 or -inf; None where every row's prompt has length P
    down_weight: Tensor | None  # [B, D, R]
    down_bias: Tensor | None  # [B, 1, R]
    up_weight: Tensor | None  # [B, R, D], adapter_scale folded in
    up_bias: Tensor | None  # [B, 1, D], adapter_scale folded in
    residual: Tensor | None  # [B, 1, 1], 1 where the adapter adds its input; None where no row does
    dropout: float = 0.0  # inside the bottleneck, in training only
    convolution: RowConvolution | None = None  # None where no row has one

    def bottleneck(self, x: Tensor) -> Tensor | None:
        """`scale * up(relu(conv(down(x))))`, plus `x` where residual (contract section 3); `[B, T, D]`, float32."""
        if self.down_weight is None or self.down_bias is None or self.up_weight is None or self.up_bias is None:
            return None
        hidden = torch.baddbmm(self.down_bias, x.to(self.down_weight.dtype), self.down_weight)
        if self.convolution is not None:
            hidden = self.convolution(hidden)
        hidden = hidden.relu()
        if self.dropout:
            hidden = functional.dropout(hidden, self.dropout)
        out = torch.baddbmm(self.up_bias, hidden, self.up_weight).float()
        return out if self.residual is None else torch.addcmul(out, x, self.residual)


@dataclass(frozen=True, slots=True)
class Attention:
    """Multi-head self-attention whose keys and values may have a prefix for each row."""

    qkv: Linear  # [3 D, D], query, key and value stacked
    out: Linear  # [D, D]
    heads: int

    def __call__(self, x: Tensor, rows: RowAdapters) -> Tensor:
        """`[B, T, D]` -> `[B, T, D]`."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mask = None
        if rows.keys is not None and rows.values is not None:
            k, v = torch.cat((rows.keys, k), dim=2), torch.cat((rows.values, v), dim=2)
            if rows.prompt_mask is not None:
                mask = functional.pad(rows.prompt_mask, (0, length)).to(q.dtype)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(attended.transpose(1, 2).reshape(batch, length, width))

    def fold(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """A prompt's keys and values, each `[H, P, d]`, from prompt tokens `[P, D]` as attention sees them.

        `K = W_k p + b_k`, `V = W_v p + b_v`, in float32: what the layer would compute at the prompt's positions,
        which is all of them that the other tokens ever meet (the layer's output there is cut off).
        """
        length, width = prompt.shape
        weight = self.qkv.weight[width:].float()
        bias = None if self.qkv.bias is None else self.qkv.bias[width:].float()
        folded = functional.linear(prompt.float(), weight, bias)
        keys, values = folded.view(length, 2, self.heads, width // self.heads).permute(1, 2, 0, 3)
        return keys, values
