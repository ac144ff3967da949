"""The frozen backbone: one forward, written once, for serving and for training."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from service.audio.features import Features
from service.model.attention import Attention
from service.model.bank import Bank
from service.model.checkpoint import Checkpoint, load_checkpoint
from service.model.kernels import Kernels
from service.model.layers import Activation, Linear, Norm, Projection, activation_named
from service.model.noise import QUIET, LayerNoise
from service.model.parts.part import Changes
from service.model.selection import RowAdapters, Selection
from service.model.spec import BackboneSpec


@dataclass(frozen=True, slots=True)
class Layer:
    """A transformer layer; its norms stand before attention and feed-forward (pre-norm) or behind them."""

    attention: Attention
    norm: Norm
    up: Projection  # with the activation
    down: Projection
    norm_last: Norm


class Backbone(ABC):
    """A frozen stack of transformer layers over a front end, in which every row may have its own adapter.

    All rows of a forward share their length: nothing is ever padded in time, so no row's answer depends on another.
    Architectures differ in their front end, in the names of their tensors, and in what is pooled.
    """

    features: Features  # what the front end reads of a clip
    layers_name: str  # what the checkpoint calls its layers
    names: ClassVar[Mapping[str, str]]  # what it calls a layer's targets, and its norms, `norm` and `norm_last`
    is_pre_norm = True
    pooled_tokens: int | None = None  # in front, all that `pool` reads; None for the whole sequence

    def __init__(
        self, checkpoint: Checkpoint, spec: BackboneSpec, device: torch.device, dtype: torch.dtype, kernels: Kernels
    ) -> None:
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self._kernels = kernels
        self._config: Any = checkpoint.config
        self._tensors = checkpoint.tensors
        self._exact: Mapping[str, Tensor] | None = None
        self._load()
        activation = activation_named(self._config.hidden_act)
        self._layers = [self._load_layer(i, activation) for i in range(spec.num_hidden_layers)]
        self._tensors = {}

    @classmethod
    @abstractmethod
    def geometry(cls, config: Any) -> dict[str, int]:
        """What of a `BackboneSpec` only the architecture knows. Raises ValueError where it is not supported."""

    @abstractmethod
    def _load(self) -> None:
        """Take what is the architecture's own, all but the layers, out of the checkpoint's tensors."""

    @abstractmethod
    def embed(self, inputs: Tensor, noise: LayerNoise = QUIET) -> Tensor:
        """The front end, which no adapter touches: inputs `[U, ...]` -> hidden states `[U, T, D]`, float32."""

    @abstractmethod
    def pool(self, hidden: Tensor) -> Tensor:
        """The last layer's output `[B, T, D]`, of which it reads `pooled_tokens` -> embeddings `[B, E]`, float32."""

    def run_layer(self, i: int, hidden: Tensor, rows: RowAdapters) -> Tensor:
        """Transformer layer i: `[B, T, D]` -> `[B, T, D]`, float32 (contract, section 3).

        Of the last layer only the tokens that are pooled are computed; all others serve as its keys and values alone.
        """
        layer, is_pre_norm = self._layers[i], self.is_pre_norm
        queries = self.pooled_tokens if i == len(self._layers) - 1 else None
        read = layer.norm(hidden) if is_pre_norm else hidden
        hidden = hidden[:, :queries] + layer.attention(read, rows, queries)
        read = layer.norm_last(hidden) if is_pre_norm else layer.norm(hidden)
        fed = rows.project("fc2", layer.down, rows.project("fc1", layer.up, read))
        out = rows.add_bottlenecks(hidden, fed, fed + (hidden if is_pre_norm else read))
        return out if is_pre_norm else layer.norm_last(out)

    def fold_prompt(self, i: int, prompt: Tensor, changes: Changes) -> tuple[Tensor, Tensor]:
        """As `Frozen.fold_prompt`."""
        layer = self._layers[i]
        return layer.attention.fold(i, layer.norm(prompt) if self.is_pre_norm else prompt, changes)

    def exact_linear(self, i: int, target: str, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """As `Frozen.exact_linear`.

        The first call reads the checkpoint again and keeps it in host memory: weights as they are served may be rounded
        or in a device's own layout. Raises OSError where the checkpoint is no longer there.
        """
        if self._exact is None:
            self._exact = load_checkpoint(self.spec.location).tensors
        name = self._name(i, target)
        bias = self._exact.get(f"{name}.bias")
        return self._exact[f"{name}.weight"].to(device), None if bias is None else bias.to(device)

    def shell(self) -> Self:
        """This backbone without its weights, which tells shapes and costs where another process runs it."""
        shell = object.__new__(type(self))
        vars(shell).update(spec=self.spec, device=self.device, dtype=self.dtype, _config=self._config)
        return shell

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
        return self._run_layers(selection.spread(self.embed(windows, selection.noise)), selection)

    def _run_layers(self, hidden: Tensor, selection: Selection) -> Tensor:
        noise = selection.noise
        if noise is not QUIET:
            hidden = noise.behind("o", hidden)
        aggregation = selection.aggregation()
        if aggregation is not None:
            aggregation.add(0, hidden[:, : self.pooled_tokens])
        for i in range(self.spec.num_hidden_layers):
            if noise is QUIET or not noise.skips():
                hidden = self.run_layer(i, hidden, RowAdapters(selection, i))
            if aggregation is not None:
                aggregation.add(i + 1, hidden[:, : self.pooled_tokens])
        embeddings = self.pool(hidden)
        return embeddings if aggregation is None else aggregation.rows.put(embeddings, self.pool(aggregation.sum()))

    def _name(self, i: int, part: str) -> str:
        return f"{self.layers_name}.{i}.{self.names[part]}"

    def _linear(self, *names: str, activation: Activation | None = None) -> Projection:
        return self._kernels.linear(self._plain_linear(*names, activation=activation))

    def _plain_linear(self, *names: str, activation: Activation | None = None) -> Linear:
        """The linear layers of these checkpoint names as one, outputs stacked."""
        weight = torch.cat([self._tensors[f"{name}.weight"] for name in names])
        biases = [self._tensors[f"{name}.bias"] for name in names if f"{name}.bias" in self._tensors]
        bias = torch.cat(biases).to(self.device, self.dtype) if biases else None
        return Linear(weight.to(self.device, self.dtype), bias, activation)

    def _norm(self, name: str) -> Norm:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return Norm(weight.to(self.device), bias.to(self.device), self.spec.norm_eps)

    def _load_layer(self, i: int, activation: Activation) -> Layer:
        return Layer(
            attention=self._load_attention(i),
            norm=self._norm(self._name(i, "norm")),
            up=self._linear(self._name(i, "fc1"), activation=activation),
            down=self._linear(self._name(i, "fc2")),
            norm_last=self._norm(self._name(i, "norm_last")),
        )

    def _load_attention(self, i: int) -> Attention:
        q, k, v, o = (self._name(i, target) for target in ("q", "k", "v", "o"))
        return Attention(
            qkv=self._linear(q, k, v),
            out=self._linear(o),
            kv=self._plain_linear(k, v),
            heads=self.spec.num_attention_heads,
            attend=self._kernels.attend,
        )
