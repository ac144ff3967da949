"""Multi-head self-attention whose keys and values may have a prefix for each row, in one call or row by row."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from service.model.layers import Linear, Module, Projection, split_heads
from service.model.parts.part import Change, Changes
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
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (each.view(shape).transpose(1, 2) for each in rows.project_stacked(("q", "k", "v"), self.qkv, x))
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
    prefixes, dropout = rows.selection.prefixes, rows.selection.noise.attention
    if not prefixes:
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2)
    out = torch.empty(0)
    for each in prefixes:
        mine = each.group.rows
        found, queries, keys, values = each.gather(rows.index), mine.take(q), mine.take(k), mine.take(v)
        mask = None if bias is None else mine.take(bias)
        if found is not None:
            hidden = each.mask(keys.shape[2], q.dtype)
            if mask is not None:
                mask = functional.pad(mask, (found[0].shape[2], 0))
            mask = hidden if mask is None else mask if hidden is None else mask + hidden
            keys, values = torch.cat((found[0], keys), dim=2), torch.cat((found[1], values), dim=2)
        attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        attended = attended.transpose(1, 2).flatten(2)
        out = mine.put(out if len(out) else attended.new_empty(len(q), *attended.shape[1:]), attended)
    return out


def attend_by_row(q: Tensor, k: Tensor, v: Tensor, rows: RowAdapters, bias: Tensor | None = None) -> Tensor:
    """Products and softmax of one row after another, each with a prefix as long as its own.

    Twice as fast as the fused form, which reads its half-precision operands slowly.
    """
    batch, heads, length, width = q.shape
    q = q * width**-0.5
    out = q.new_empty(batch, length, heads, width)
    prefixes: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values [H, P, d], not copied
    for group in (each.group for each in rows.selection.prefixes if each.group.kind is not None):
        stacked_keys, stacked_values = group.stacks["keys"][rows.index], group.stacks["values"][rows.index]
        for row, place, length in zip(group.rows.numbers, group.places, group.sizes, strict=True):
            prefixes[row] = stacked_keys[place, :, :length], stacked_values[place, :, :length]
    for row in range(batch):
        keys, values = k[row], v[row]  # [H, T, d]
        if row in prefixes:
            before, values_before = prefixes[row]
            keys, values = torch.cat((before, keys), dim=1), torch.cat((values_before, values), dim=1)
        scores = torch.bmm(q[row], keys.transpose(1, 2))  # [H, Q, P + T]
        if bias is not None:
            scores[:, :, scores.shape[2] - k.shape[2] :] += bias[row]
        weights = scores.softmax(dim=-1)
        out[row] = torch.bmm(weights, values).transpose(0, 1)
    return out.flatten(2)
