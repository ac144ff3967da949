"""Attention on CPUs in bfloat16: one row after another, whose scores stay in the cache."""

import torch
from torch import Tensor

from service.model.selection import RowAdapters


def attend_by_row(q: Tensor, k: Tensor, v: Tensor, rows: RowAdapters, bias: Tensor | None = None) -> Tensor:
    """Products and softmax of one row after another, each with a prefix as long as its own.

    Twice as fast as the fused form, which reads its half-precision operands slowly.
    """
    batch, heads, length, width = q.shape
    q = q * width**-0.5
    out = q.new_empty(batch, length, heads, width)
    prefixes = _prefixes(rows)
    for row in range(batch):
        keys, values = k[row], v[row]  # [H, T, d]
        before = prefixes.get(row)
        if before is not None:
            keys, values = torch.cat((before[0], keys), dim=1), torch.cat((before[1], values), dim=1)
        scores = torch.bmm(q[row], keys.transpose(1, 2))  # [H, Q, P + T]
        if bias is not None:
            scores[:, :, scores.shape[2] - k.shape[2] :] += bias[row]
        weights = scores.softmax(dim=-1)
        out[row] = torch.bmm(weights, values).transpose(0, 1)
    return out.flatten(2)


def _prefixes(rows: RowAdapters) -> dict[int, tuple[Tensor, Tensor]]:
    """Keys and values `[H, P, d]` of the rows that have a prefix."""
    found = {}
    for each in rows.prefixes:
        for c, row in enumerate(each.rows.numbers):
            before = each.of_row(c, rows.index)
            if before is not None:
                found[row] = before
    return found
