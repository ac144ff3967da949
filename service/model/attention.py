"""Multi-head self-attention whose keys and values may have a prefix for each row."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from service.model.groups import RowSubset
from service.model.layers import Linear, Module, Projection
from service.model.parts.part import split_heads
from service.model.parts.prefix import RowPrefixes
from service.model.parts.targets import Change, Changes
from service.model.selection import RowAdapters

# Queries [B, H, Q, d], keys and values [B, H, T, d], the rows whose prefixes go before them, and what is added to the
# scores [B, H, Q, T] if anything is -> [B, Q, H * d].
Attend = Callable[[Tensor, Tensor, Tensor, RowAdapters, Tensor | None], Tensor]


@dataclass(frozen=True, slots=True)
class Attention:
    qkv: Projection  # [3 D, D], query, key and value stacked
    out: Projection  # [D, D]
    kv: Linear  # [2 D, D], the plain keys and values of `qkv`, which prompts are folded through
    heads: int
    attend: Attend
    bias: Module | None = None  # what attention reads [B, T, D] -> what is added to its scores [B, H, T, T]

    def __call__(self, x: Tensor, rows: RowAdapters, queries: int | None = None) -> Tensor:
        """`[B, T, D]` -> `[B, T, D]`, or the first `queries` tokens of it."""
        stacked, width = self.qkv(x), x.shape[2]

        def split(target: str, first: int) -> Tensor:
            mine = rows.change_columns(target, self.qkv, x, stacked, slice(first, first + width))
            return split_heads(mine, self.heads)

        q, k, v = split("q", 0), split("k", width), split("v", 2 * width)
        bias = None if self.bias is None else self.bias(x)[:, :, :queries].to(q.dtype)
        return rows.project("o", self.out, self.attend(q[:, :, :queries], k, v, rows, bias))

    def fold(self, layer: int, prompt: Tensor, changes: Changes) -> tuple[Tensor, Tensor]:
        """A prompt's keys and values, each `[H, P, d]`, from prompt tokens `[P, D]` as attention sees them.

        `K = W_k p + b_k`, `V = W_v p + b_v`, in float32, with what the same adapter changes in these maps: what the
        layer would compute at the prompt's positions, which is all of them that the other tokens ever meet (the
        layer's output there is cut off).
        """
        width = prompt.shape[1]
        bias = torch.zeros(()) if self.kv.bias is None else self.kv.bias

        def fold_half(target: str, half: slice) -> Tensor:
            shift = bias.float() if bias.dim() == 0 else bias[half].float()
            folded = changes.get(target, Change()).apply(
                layer, prompt.float(), lambda x: functional.linear(x, self.kv.weight[half].float()) + shift
            )
            return split_heads(folded[None], self.heads)[0]

        return fold_half("k", slice(0, width)), fold_half("v", slice(width, None))


def attend_fused(q: Tensor, k: Tensor, v: Tensor, rows: RowAdapters, bias: Tensor | None = None) -> Tensor:
    """PyTorch's scaled dot-product attention; rows whose prefixes are of about one length in one call.

    A prefix has bias 0.
    """
    prefixes = rows.prefixes or (RowPrefixes(RowSubset(range(len(q)), None), None),)
    out = None
    for each in prefixes:
        found = each.gather(rows.index)
        queries, keys, values = each.rows.take(q), each.rows.take(k), each.rows.take(v)
        mask = None if bias is None else each.rows.take(bias)
        if found is not None:
            hidden = each.mask(keys.shape[2], q.dtype)
            if mask is not None:
                mask = functional.pad(mask, (found[0].shape[2], 0))
            mask = hidden if mask is None else mask if hidden is None else mask + hidden
            keys, values = torch.cat((found[0], keys), dim=2), torch.cat((found[1], values), dim=2)
        attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        attended = attended.transpose(1, 2).flatten(2)
        if each.rows.index is None:
            return attended
        out = attended.new_empty(len(q), *attended.shape[1:]) if out is None else out
        out = each.rows.put(out, attended)
    assert out is not None
    return out
