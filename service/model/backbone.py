"""The frozen backbone: one forward, written once, for serving and for training."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from service.audio.features import Features
from service.model.attention import Attention
from service.model.bank import Bank
from service.model.checkpoint import Checkpoint, load_checkpoint
from service.model.kernels import Kernels
from service.model.layers import Activation, Linear, Norm, Projection
from service.model.parts.convolution import TokenLayout
from service.model.parts.targets import Changes
from service.model.selection import RowAdapters, Selection
from service.model.spec import BackboneSpec


class Backbone(ABC):
    """A frozen stack of transformer layers over a front end, in which every row may have its own adapter.

    All rows of a forward share their length: nothing is ever padded in time, so no row's answer depends on another.
    """

    features: Features  # what the front end reads of a clip
    layout = TokenLayout()  # of the sequence that the layers see

    def __init__(
        self, checkpoint: Checkpoint, spec: BackboneSpec, device: torch.device, dtype: torch.dtype, kernels: Kernels
    ) -> None:
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self._kernels = kernels
        self._tensors = checkpoint.tensors
        self._exact: Mapping[str, Tensor] | None = None

    @abstractmethod
    def embed(self, inputs: Tensor) -> Tensor:
        """The front end, which no adapter touches: inputs `[U, ...]` -> hidden states `[U, T, D]`, float32."""

    @abstractmethod
    def run_layer(self, i: int, hidden: Tensor, rows: RowAdapters) -> Tensor:
        """Transformer layer i: `[B, T, D]` -> `[B, T, D]`, float32 (contract, section 3).

        The last layer may leave out tokens that neither `pool` nor any adapter reads.
        """

    def pooled_part(self, hidden: Tensor) -> Tensor:
        """The tokens of `[B, T, D]` that `pool` reads."""
        return hidden

    @abstractmethod
    def pool(self, hidden: Tensor) -> Tensor:
        """The last layer's output `[B, T, D]`, or its `pooled_part` -> embeddings `[B, E]`, float32."""

    @abstractmethod
    def fold_prompt(self, i: int, prompt: Tensor, changes: Changes) -> tuple[Tensor, Tensor]:
        """The prompt `[P, D]` of layer i as keys and values, each `[H, P, d]`, float32.

        Args:
            changes: what the prompt's own adapter changes in the layers.
        """

    @abstractmethod
    def target_name(self, i: int, target: str) -> str:
        """The checkpoint's name of a linear map that adapters may change, one of `TARGETS`, in layer i."""

    def exact_linear(self, i: int, target: str) -> tuple[Tensor, Tensor | None]:
        """Weight `[out, in]` and bias `[out]` of a target in float32, as the checkpoint has them.

        The first call reads the checkpoint again and keeps it in host memory: weights as they are served may be rounded
        or in a device's own layout. Raises OSError where the checkpoint is no longer there.
        """
        if self._exact is None:
            self._exact = load_checkpoint(self.spec.location).tensors
        name = self.target_name(i, target)
        bias = self._exact.get(f"{name}.bias")
        return self._exact[f"{name}.weight"].to(self.device), None if bias is None else bias.to(self.device)

    def input_shape(self, window_frames: int) -> tuple[int, ...]:
        """Shape of one window's input, without the batch: `[frames, mel bins]` or `[samples]`."""
        return self.features.shape(window_frames)

    @abstractmethod
    def token_count(self, window_frames: int) -> int:
        """T, the length of the sequence that the layers see of one window."""

    def forward(self, inputs: Tensor, bank: Bank, slots: Sequence[int], rows: Sequence[int] | None = None) -> Tensor:
        """Embeddings of a batch whose every row names its adapter's slot.

        Args:
            inputs: `[U, ...]` windows of one length, float32 on any device.
            bank: holds the adapters.
            slots: slot of each of the B rows.
            rows: index into `inputs` for each row, so that adapters on one window share the front end (but for those
                with input prompts, which change the window); by default row b reads window b.

        Returns:
            `[B, E]`, float32, on the backbone's device.
        """
        return self._embeddings(inputs, bank.select(slots, rows, len(inputs)))

    def answer(self, inputs: Tensor, bank: Bank, slots: Sequence[int], rows: Sequence[int] | None = None) -> Tensor:
        """`forward`, then each row's head: `[B, widest]`, float32, zeros behind a row's own `bank.outputs(slot)`.

        Two copies to the device, the inputs and one tensor of integers, whatever the number of adapters; copying the
        answer back is the only one from it.
        """
        selection = bank.select(slots, rows, len(inputs))
        return selection.outputs(self._embeddings(inputs, selection))

    def encode(self, hidden: Tensor, bank: Bank, slots: Sequence[int]) -> Tensor:
        """`forward` behind the front end: hidden states `[B, T, D]` -> embeddings `[B, E]`, float32."""
        return self._run_layers(hidden, bank.select(slots))

    def _embeddings(self, inputs: Tensor, selection: Selection) -> Tensor:
        windows = selection.with_pictures(inputs.to(self.device, non_blocking=True))
        return self._run_layers(selection.spread(self.embed(windows)), selection)

    def _run_layers(self, hidden: Tensor, selection: Selection) -> Tensor:
        aggregation = selection.aggregation()
        if aggregation is not None:
            aggregation.add(0, self.pooled_part(hidden))
        for i in range(self.spec.num_hidden_layers):
            hidden = self.run_layer(i, hidden, selection.layer(i))
            if aggregation is not None:
                aggregation.add(i + 1, self.pooled_part(hidden))
        embeddings = self.pool(hidden)
        return embeddings if aggregation is None else aggregation.rows.put(embeddings, self.pool(aggregation.sum()))

    def _linear(self, *names: str, activation: Activation | None = None) -> Projection:
        return self._kernels.linear(self._plain_linear(*names, activation=activation))

    def _plain_linear(self, *names: str, activation: Activation | None = None) -> Linear:
        """The linear layers of these checkpoint names as one, outputs stacked."""
        weight = torch.cat([self._tensors[f"{name}.weight"] for name in names])
        biases = [self._tensors[f"{name}.bias"] for name in names if f"{name}.bias" in self._tensors]
        bias = torch.cat(biases).to(self.device, self.dtype) if biases else None
        return Linear(weight.to(self.device, self.dtype), bias, activation)

    def _norm(self, name: str, eps: float) -> Norm:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return Norm(weight.to(self.device), bias.to(self.device), eps)

    def _attention(self, q: str, k: str, v: str, out: str) -> Attention:
        return Attention(
            qkv=self._linear(q, k, v),
            out=self._linear(out),
            kv=self._plain_linear(k, v),
            heads=self.spec.num_attention_heads,
            attend=self._kernels.attend,
        )
