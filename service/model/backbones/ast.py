"""The Audio Spectrogram Transformer (arXiv 2104.01778) as an explicit loop over frozen layers."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from service.audio.features import FILTER_BANK
from service.model.attention import Attention
from service.model.backbone import Backbone
from service.model.checkpoint import Checkpoint
from service.model.kernels import Kernels
from service.model.layers import Activation, Norm, Projection, activation_named
from service.model.parts.convolution import TokenLayout
from service.model.parts.targets import Changes
from service.model.selection import RowAdapters
from service.model.spec import MEL_BINS, BackboneSpec

_EXTRA_TOKENS = 2  # CLS and distillation
_TARGET_NAMES = {
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "o": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
_LENGTHS_KEPT = 8  # of interpolated positions: 36 MiB each at 300 s and a width of 768


@dataclass(frozen=True, slots=True)
class ASTLayer:
    norm_before: Norm
    attention: Attention
    norm_after: Norm
    up: Projection  # with the activation
    down: Projection


class ASTBackbone(Backbone):
    """Pre-norm layers over overlapping spectrogram patches; inputs are `[U, frames, 128]`, normalised."""

    features = FILTER_BANK

    def __init__(
        self, checkpoint: Checkpoint, spec: BackboneSpec, device: torch.device, dtype: torch.dtype, kernels: Kernels
    ) -> None:
        super().__init__(checkpoint, spec, device, dtype, kernels)
        config, tensors = checkpoint.config, checkpoint.tensors
        eps = config.layer_norm_eps
        self._patch_size = _square(config.patch_size)
        self._time_stride = config.time_stride
        self._strides = (config.frequency_stride, config.time_stride)
        self._patch_weight = tensors["embeddings.patch_embeddings.projection.weight"].to(device, dtype)
        self._patch_bias = tensors["embeddings.patch_embeddings.projection.bias"].to(device, dtype)
        extra = torch.cat((tensors["embeddings.cls_token"], tensors["embeddings.distillation_token"]), dim=1)
        positions = tensors["embeddings.position_embeddings"]
        self._extra_tokens = (extra + positions[:, :_EXTRA_TOKENS]).to(device)  # [1, 2, D]
        self._rows = (MEL_BINS - self._patch_size) // config.frequency_stride + 1
        self.layout = TokenLayout(_EXTRA_TOKENS, self._rows)
        grid = positions[:, _EXTRA_TOKENS:].to(device)
        self._grid = grid.view(1, self._rows, -1, spec.hidden_size).permute(0, 3, 1, 2)  # [1, D, rows, columns]
        self._interpolated: OrderedDict[int, Tensor] = OrderedDict()
        activation = activation_named(config.hidden_act)
        self._norm_last = self._norm("layernorm", eps)
        self._layers = [self._load_layer(f"encoder.layer.{i}", eps, activation) for i in range(spec.num_hidden_layers)]
        self._tensors = {}

    def _load_layer(self, name: str, eps: float, activation: Activation) -> ASTLayer:
        inner = f"{name}.attention.attention"
        return ASTLayer(
            norm_before=self._norm(f"{name}.layernorm_before", eps),
            attention=self._attention(
                f"{inner}.query", f"{inner}.key", f"{inner}.value", f"{name}.attention.output.dense"
            ),
            norm_after=self._norm(f"{name}.layernorm_after", eps),
            up=self._linear(f"{name}.intermediate.dense", activation=activation),
            down=self._linear(f"{name}.output.dense"),
        )

    def embed(self, inputs: Tensor) -> Tensor:
        spectrogram = inputs.transpose(1, 2).unsqueeze(1).to(self.dtype)  # [U, 1, bins, frames]
        patches = functional.conv2d(spectrogram, self._patch_weight, self._patch_bias, self._strides).float()
        patches = (patches + self.positions(patches.shape[3])).flatten(2).transpose(1, 2)
        return torch.cat((self._extra_tokens.expand(len(patches), -1, -1), patches), dim=1)

    def positions(self, columns: int) -> Tensor:
        """The checkpoint's position embeddings for this many time patches: `[1, D, rows, columns]`.

        Fewer than the checkpoint has: cropped around its middle; more: bilinear interpolation.
        """
        have = self._grid.shape[3]
        if columns <= have:
            start = have // 2 - columns // 2
            return self._grid[..., start : start + columns]
        positions = self._interpolated.get(columns)
        if positions is None:
            positions = functional.interpolate(self._grid, (self._rows, columns), mode="bilinear")
            self._interpolated[columns] = positions
            if len(self._interpolated) > _LENGTHS_KEPT:
                self._interpolated.popitem(last=False)
        return positions

    def run_layer(self, i: int, hidden: Tensor, rows: RowAdapters) -> Tensor:
        layer = self._layers[i]
        # Of the last layer only the pooled tokens are read; all others serve as its keys and values alone.
        last = i == len(self._layers) - 1 and not rows.mixes_frames
        queries = _EXTRA_TOKENS if last else None
        hidden = hidden[:, :queries] + layer.attention(layer.norm_before(hidden), rows, queries)
        fed = rows.project("fc2", layer.down, rows.project("fc1", layer.up, layer.norm_after(hidden)))
        return rows.add_bottlenecks(hidden, fed, hidden + fed)

    def pooled_part(self, hidden: Tensor) -> Tensor:
        return hidden[:, :_EXTRA_TOKENS]

    def pool(self, hidden: Tensor) -> Tensor:
        return self._norm_last(hidden[:, :_EXTRA_TOKENS]).mean(dim=1)

    def fold_prompt(self, i: int, prompt: Tensor, changes: Changes) -> tuple[Tensor, Tensor]:
        layer = self._layers[i]
        return layer.attention.fold(i, layer.norm_before(prompt), changes)

    def target_name(self, i: int, target: str) -> str:
        return f"encoder.layer.{i}.{_TARGET_NAMES[target]}"

    def token_count(self, window_frames: int) -> int:
        columns = (window_frames - self._patch_size) // self._time_stride + 1
        return int(_EXTRA_TOKENS + self._rows * columns)


def check_ast(checkpoint: Checkpoint) -> int:
    """The fewest frames that make one patch. Raises ValueError for a configuration that is not supported."""
    config = checkpoint.config
    if config.num_mel_bins != MEL_BINS:
        raise ValueError(f"the backbone wants {config.num_mel_bins} mel bins; the service computes {MEL_BINS}")
    return _square(config.patch_size)


def _square(patch_size: int | list[int] | tuple[int, ...]) -> int:
    sizes = [patch_size] if isinstance(patch_size, int) else list(patch_size)
    if len(set(sizes)) != 1:
        raise ValueError(f"the backbone's patches are {sizes}; only square patches are supported")
    return int(sizes[0])
