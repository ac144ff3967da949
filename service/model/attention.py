"""Multi-head self-attention whose keys and values may have a prefix for each row. Knows no slots and no layers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from service.model.layers import Linear, Projection, RowAdapters

# Queries [B, H, Q, d], keys and values [B, H, T, d], and the rows whose prefixes go before them -> [B, Q, H * d].
Attend = Callable[[Tensor, Tensor, Tensor, RowAdapters], Tensor]


@dataclass(frozen=True, slots=True)
class Attention:
    qkv: Projection  # [3 D, D], query, key and value stacked
    out: Projection  # [D, D]
    kv: Linear  # [2 D, D], the plain keys and values of `qkv`, which prompts are folded through
    heads: int
    attend: Attend

    def __call__(self, x: Tensor, rows: RowAdapters, queries: int | None = None) -> Tensor:
        """`[B, T, D]` -> `[B, T, D]`, or the first `queries` tokens of it."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(q[:, :, :queries], k, v, rows))

    def fold(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """A prompt's keys and values, each `[H, P, d]`, from prompt tokens `[P, D]` as attention sees them.

        `K = W_k p + b_k`, `V = W_v p + b_v`, in float32: what the layer would compute at the prompt's positions,
        which is all of them that the other tokens ever meet (the layer's output there is cut off).
        """
        length, width = prompt.shape
        bias = None if self.kv.bias is None else self.kv.bias.float()
        folded = functional.linear(prompt.float(), self.kv.weight.float(), bias)
        keys, values = folded.view(length, 2, self.heads, width // self.heads).permute(1, 2, 0, 3)
        return keys, values


def attend_fused(q: Tensor, k: Tensor, v: Tensor, rows: RowAdapters) -> Tensor:
    """PyTorch's scaled dot-product attention over the whole batch, shorter prefixes masked."""
    mask = None
    if rows.keys is not None and rows.values is not None:
        length = k.shape[2]
        k, v = torch.cat((rows.keys, k), dim=2), torch.cat((rows.values, v), dim=2)
        if rows.prompt_mask is not None:
            mask = functional.pad(rows.prompt_mask, (0, length)).to(q.dtype)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def attend_by_row(q: Tensor, k: Tensor, v: Tensor, rows: RowAdapters) -> Tensor:
    """Products and softmax of one row after another, whose scores stay in a CPU's cache; prefixes as long as they are.

    On CPUs in bfloat16 twice as fast as the fused form, which reads its half-precision operands slowly.
    """
    batch, heads, length, width = q.shape
    q = q * width**-0.5
    out = q.new_empty(batch, length, heads, width)
    for row in range(batch):
        keys, values = k[row], v[row]  # [H, T, d]
        if rows.keys is not None and rows.values is not None:
            prefix = rows.prompt_lengths[row]
            keys = torch.cat((rows.keys[row, :, :prefix], keys), dim=1)
            values = torch.cat((rows.values[row, :, :prefix], values), dim=1)
        weights = torch.bmm(q[row], keys.transpose(1, 2)).softmax(dim=-1)
        out[row] = torch.bmm(weights, values).transpose(0, 1)
    return out.flatten(2)
