"""The Audio Spectrogram Transformer (arXiv 2104.01778)."""

from collections import OrderedDict
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from service.audio.features import FILTER_BANK
from service.model.backbone import Backbone
from service.model.noise import QUIET, LayerNoise
from service.model.spec import MEL_BINS

_EXTRA_TOKENS = 2  # CLS and distillation
_LENGTHS_KEPT = 8  # of interpolated positions: 36 MiB each at 300 s and a width of 768


class ASTBackbone(Backbone):
    """Pre-norm layers over overlapping spectrogram patches; inputs are `[U, frames, 128]`, normalised."""

    features = FILTER_BANK
    pooled_tokens = _EXTRA_TOKENS
    layers_name = "encoder.layer"
    names: ClassVar = {
        "q": "attention.attention.query",
        "k": "attention.attention.key",
        "v": "attention.attention.value",
        "o": "attention.output.dense",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "norm": "layernorm_before",
        "norm_last": "layernorm_after",
    }

    @classmethod
    def geometry(cls, config: Any) -> dict[str, int]:
        if config.num_mel_bins != MEL_BINS:
            raise ValueError(f"the backbone wants {config.num_mel_bins} mel bins; the service computes {MEL_BINS}")
        patch = _square(config.patch_size)
        return {
            "embedding_size": config.hidden_size,
            "min_window_frames": patch,  # the fewest that make one
            "special_tokens": _EXTRA_TOKENS,
            "bands": (MEL_BINS - patch) // config.frequency_stride + 1,
        }

    def _load(self) -> None:
        config, tensors = self._config, self._tensors
        self._strides: tuple[int, int] = (config.frequency_stride, config.time_stride)
        self._patch_weight = tensors["embeddings.patch_embeddings.projection.weight"].to(self.device, self.dtype)
        self._patch_bias = tensors["embeddings.patch_embeddings.projection.bias"].to(self.device, self.dtype)
        extra = torch.cat((tensors["embeddings.cls_token"], tensors["embeddings.distillation_token"]), dim=1)
        positions = tensors["embeddings.position_embeddings"]
        self._extra_tokens = (extra + positions[:, :_EXTRA_TOKENS]).to(self.device)  # [1, 2, D]
        grid = positions[:, _EXTRA_TOKENS:].to(self.device)
        self._grid = grid.view(1, self.spec.bands, -1, self.spec.hidden_size).permute(
            0, 3, 1, 2
        )  # [1, D, rows, columns]
        self._interpolated: OrderedDict[int, Tensor] = OrderedDict()
        self._norm_last = self._norm("layernorm")

    def embed(self, inputs: Tensor, noise: LayerNoise = QUIET) -> Tensor:
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
            positions = functional.interpolate(self._grid, (self.spec.bands, columns), mode="bilinear")
            self._interpolated[columns] = positions
            if len(self._interpolated) > _LENGTHS_KEPT:
                self._interpolated.popitem(last=False)
        return positions

    def pool(self, hidden: Tensor) -> Tensor:
        return self._norm_last(hidden[:, :_EXTRA_TOKENS]).mean(dim=1)

    def token_count(self, window_frames: int) -> int:
        stride: int = self._config.time_stride
        return _EXTRA_TOKENS + self.spec.bands * ((window_frames - _square(self._config.patch_size)) // stride + 1)


def _square(patch_size: int | list[int] | tuple[int, ...]) -> int:
    sizes = [patch_size] if isinstance(patch_size, int) else list(patch_size)
    if len(set(sizes)) != 1:
        raise ValueError(f"the backbone's patches are {sizes}; only square patches are supported")
    return int(sizes[0])
