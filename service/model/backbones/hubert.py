"""HuBERT (arXiv 2106.07447): wav2vec 2.0's architecture, some with a batch norm before the positions."""

from torch import Tensor
from torch.nn import functional

from service.model.backbones.wav2vec2 import Wav2Vec2Backbone
from service.model.layers import Module

_BATCH_NORM_EPS = 1e-5  # torch's default, which these checkpoints have


class HubertBackbone(Wav2Vec2Backbone):
    def _load_positions(self) -> Module:
        if not getattr(self._config, "conv_pos_batch_norm", False):
            return super()._load_positions()
        name = "encoder.pos_conv_embed"
        convolution = self._position_convolution(f"{name}.conv", self._tensors[f"{name}.conv.weight"])
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (self._tensors[f"{name}.batch_norm.{part}"].to(self.device) for part in parts)

        def positions(hidden: Tensor) -> Tensor:
            normed = functional.batch_norm(
                hidden.float().transpose(1, 2), mean, variance, weight, bias, training=False, eps=_BATCH_NORM_EPS
            )
            return self._front_activation(convolution(normed.transpose(1, 2)))

        return positions
