"""Device memory for the adapters in use: one row of preallocated tensors for each slot. Knows no names or versions.

Loading writes one slot. Nothing is reallocated, so whatever was captured or compiled over the bank survives a swap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from service.model.adapter import AdapterWeights
from service.model.aggregation import RowAggregation
from service.model.convolution import ConvolvedRows
from service.model.folding import FoldedAdapter, fold
from service.model.heads import Head
from service.model.input_prompt import add_input_prompts
from service.model.layers import RowAdapters
from service.model.rows import RowSubset
from service.model.spec import NULL_SLOT

if TYPE_CHECKING:
    from service.model.backbone import Backbone


class Bank:
    """Slots of adapters; slot 0 is the null adapter, the bare backbone.

    Args:
        backbone: whose geometry, device and dtype the slots have.
        slots: number of slots for adapters, beside the null adapter's.
        prompt_length: longest prompt that fits a slot.
        bottleneck_dim: largest bottleneck that fits a slot.
        conv_kernel: longest convolution that fits a slot; without one no memory is taken for them.
    """

    def __init__(
        self,
        backbone: "Backbone",
        slots: int,
        prompt_length: int = 128,
        bottleneck_dim: int = 128,
        conv_kernel: int = 0,
    ) -> None:
        spec = backbone.spec
        layers, width, heads = spec.num_hidden_layers, spec.hidden_size, spec.num_attention_heads
        shapes = {
            "keys": (heads, prompt_length, width // heads),
            "values": (heads, prompt_length, width // heads),
            "down_weight": (width, bottleneck_dim),
            "down_bias": (1, bottleneck_dim),
            "up_weight": (bottleneck_dim, width),
            "up_bias": (1, width),
        }
        if conv_kernel:
            shapes |= {"conv_weight": (bottleneck_dim, conv_kernel), "conv_bias": (1, bottleneck_dim)}
        # The layer comes first, so that one layer's slots are one contiguous tensor: [L, S, ...].
        self._stacks = {
            name: torch.zeros((layers, slots + 1, *shape), device=backbone.device, dtype=backbone.dtype)
            for name, shape in shapes.items()
        }
        self._device = backbone.device
        self._layout = backbone.layout
        self._dropout = 0.0
        self._prompt_lengths = [0] * (slots + 1)
        self._bottlenecks = [0] * (slots + 1)
        self._kernels = [0] * (slots + 1)
        self._residuals = [False] * (slots + 1)
        # Of sizes of their own, and few: each has its own memory.
        self._heads: list[Head | None] = [None] * (slots + 1)
        self._layer_weights: list[Tensor | None] = [None] * (slots + 1)
        self._input_prompts: list[Tensor | None] = [None] * (slots + 1)

    @classmethod
    def of(cls, backbone: "Backbone", adapters: Sequence[AdapterWeights], dropout: float = 0.0) -> "Bank":
        """A bank that just fits `adapters`, in slots 1, 2, ...; gradients reach their tensors (training)."""
        folded = [fold(weights, backbone) for weights in adapters]
        longest = max((adapter.prompt_length for adapter in folded), default=0)
        widest = max((adapter.bottleneck_dim for adapter in folded), default=0)
        kernel = max((adapter.conv_kernel for adapter in folded), default=0)
        bank = cls(backbone, len(folded), longest, widest, kernel)
        for name, empty in bank._stacks.items():
            parts = [empty[:, 0]]
            for adapter in folded:
                part: Tensor | None = getattr(adapter, name)
                parts.append(empty[:, 0] if part is None else _pad_to(name, part.to(empty.dtype), empty[:, 0].shape))
            bank._stacks[name] = torch.stack(parts, dim=1)
        for slot, adapter in enumerate(folded, start=1):
            bank._describe(slot, adapter)
        bank._dropout = dropout
        return bank

    @property
    def slots(self) -> int:
        """Slots for adapters; they are numbered from 1."""
        return len(self._heads) - 1

    @property
    def nbytes(self) -> int:
        return sum(stack.nbytes for stack in self._stacks.values())

    def head(self, slot: int) -> Head:
        """The head of the adapter in `slot`. Raises KeyError where the slot is empty or the null adapter's."""
        head = self._heads[slot]
        if head is None:
            raise KeyError(f"slot {slot} holds no adapter")
        return head

    @torch.no_grad()
    def write(self, slot: int, adapter: FoldedAdapter) -> None:
        """Puts `adapter` into `slot`, which no running forward may be reading.

        Raises:
            ValueError: the slot is not one of the bank's, or the adapter does not fit it.
        """
        if not NULL_SLOT < slot <= self.slots:
            raise ValueError(f"slot {slot} is not one of 1 to {self.slots}")
        longest, widest = self._stacks["keys"].shape[3], self._stacks["down_bias"].shape[3]
        kernel = self._stacks["conv_weight"].shape[3] if "conv_weight" in self._stacks else 0
        if adapter.prompt_length > longest or adapter.bottleneck_dim > widest or adapter.conv_kernel > kernel:
            raise ValueError(
                f"prompt_length {adapter.prompt_length}, bottleneck_dim {adapter.bottleneck_dim}, conv_kernel "
                f"{adapter.conv_kernel} do not fit a slot of {longest}, {widest}, {kernel}"
            )
        for name, stack in self._stacks.items():
            target, part = stack[:, slot], getattr(adapter, name)
            if part is None:
                target.zero_()
            else:
                target.copy_(_pad_to(name, part, target.shape))
        self._describe(slot, adapter)

    def clear(self, slot: int) -> None:
        """Forgets what is in `slot`, so that it answers as the null adapter."""
        self._prompt_lengths[slot] = self._bottlenecks[slot] = self._kernels[slot] = 0
        self._residuals[slot] = False
        self._heads[slot] = self._layer_weights[slot] = self._input_prompts[slot] = None

    def add_input_prompts(
        self, windows: Tensor, slots: Sequence[int], rows: Sequence[int] | None
    ) -> tuple[Tensor, Sequence[int] | None]:
        """Windows `[V, ...]` with the input prompts of the rows that have one, and each row's index among them.

        Args:
            windows: `[U, ...]`, on the bank's device.
            rows: index into `windows` of each row, row b's being b by default.
        """
        pictures = [self._input_prompts[slot] for slot in slots]
        if all(picture is None for picture in pictures):
            return windows, rows
        return add_input_prompts(windows, range(len(slots)) if rows is None else rows, pictures)

    def select(self, slots: Sequence[int]) -> "Selection":
        """The adapters of the rows of a batch, `slots[b]` being row b's."""
        lengths = [self._prompt_lengths[slot] for slot in slots]
        longest, widest = max(lengths), max(self._bottlenecks[slot] for slot in slots)
        mask = residual = None
        if min(lengths) < longest:
            lacking = torch.arange(longest) >= torch.tensor(lengths).unsqueeze(1)
            mask = torch.zeros(lacking.shape).masked_fill_(lacking, -torch.inf)[:, None, None, :].to(self._device)
        if any(self._residuals[slot] for slot in slots):
            flags = [float(self._residuals[slot]) for slot in slots]
            residual = torch.tensor(flags, device=self._device)[:, None, None]
        # A cleared slot's tensors are stale, so a row without a bottleneck reads the null slot's zeros.
        adapted = [slot if self._bottlenecks[slot] else NULL_SLOT for slot in slots]
        return Selection(
            stacks=self._stacks,
            prompt_length=longest,
            bottleneck_dim=widest,
            prompted=torch.tensor(list(slots), device=self._device),
            adapted=torch.tensor(adapted, device=self._device),
            prompt_lengths=lengths,
            prompt_mask=mask,
            residual=residual,
            dropout=self._dropout,
            convolved=self._convolved(slots),
            aggregation=self._aggregation(slots),
        )

    def _convolved(self, slots: Sequence[int]) -> ConvolvedRows | None:
        rows = [row for row, slot in enumerate(slots) if self._kernels[slot]]
        if not rows:
            return None
        return ConvolvedRows(
            kernel=max(self._kernels[slots[row]] for row in rows),
            slots=torch.tensor([slots[row] for row in rows], device=self._device),
            rows=RowSubset.of(rows, len(slots), self._device),
            layout=self._layout,
        )

    def _aggregation(self, slots: Sequence[int]) -> RowAggregation | None:
        found = [(row, weights) for row, slot in enumerate(slots) if (weights := self._layer_weights[slot]) is not None]
        if not found:
            return None
        rows = RowSubset.of([row for row, _ in found], len(slots), self._device)
        return RowAggregation(torch.stack([weights for _, weights in found]), rows)

    def _describe(self, slot: int, adapter: FoldedAdapter) -> None:
        self._prompt_lengths[slot] = adapter.prompt_length
        self._bottlenecks[slot] = adapter.bottleneck_dim
        self._residuals[slot] = adapter.residual
        self._kernels[slot] = adapter.conv_kernel
        self._heads[slot] = adapter.head
        self._layer_weights[slot] = adapter.layer_weights
        self._input_prompts[slot] = adapter.input_prompt


@dataclass(frozen=True, slots=True)
class Selection:
    """Which slots the rows of a batch read, and how much of them; the tensors are gathered layer by layer."""

    stacks: Mapping[str, Tensor]  # [L, S, ...]
    prompt_length: int  # longest in the batch
    bottleneck_dim: int  # largest in the batch
    prompted: Tensor  # [B], slot of each row's prompt
    adapted: Tensor  # [B], slot of each row's bottleneck
    prompt_lengths: Sequence[int]  # [B]
    prompt_mask: Tensor | None  # [B, 1, 1, P]
    residual: Tensor | None  # [B, 1, 1]
    dropout: float
    convolved: ConvolvedRows | None
    aggregation: RowAggregation | None

    def layer(self, i: int) -> RowAdapters:
        """Layer i's adapters, a copy for each row."""

        def gather(name: str, index: Tensor, dim: int, size: int) -> Tensor:
            return self.stacks[name][i].narrow(dim, 0, size).index_select(0, index)

        p, r = self.prompt_length, self.bottleneck_dim
        convolution = None
        if self.convolved is not None:
            convolution = self.convolved.layer(self.stacks["conv_weight"][i], self.stacks["conv_bias"][i], r)
        return RowAdapters(
            keys=gather("keys", self.prompted, 2, p) if p else None,
            values=gather("values", self.prompted, 2, p) if p else None,
            prompt_lengths=self.prompt_lengths,
            prompt_mask=self.prompt_mask,
            down_weight=gather("down_weight", self.adapted, 2, r) if r else None,
            down_bias=gather("down_bias", self.adapted, 2, r) if r else None,
            up_weight=gather("up_weight", self.adapted, 1, r) if r else None,
            up_bias=self.stacks["up_bias"][i].index_select(0, self.adapted) if r else None,
            residual=self.residual,
            dropout=self.dropout,
            convolution=convolution,
        )


def _pad_to(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Zero-pads `tensor` at the ends to `shape`: exact for bottlenecks, masked for prompts; kernels on both sides."""
    widths: list[int] = []
    for have, want in zip(reversed(tensor.shape), reversed(shape), strict=True):
        before = (want - have) // 2 if name == "conv_weight" and not widths else 0
        widths += [before, want - have - before]
    return functional.pad(tensor, widths) if any(widths) else tensor
