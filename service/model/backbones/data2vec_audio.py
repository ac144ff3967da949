"""data2vec for audio (arXiv 2202.03555): wav2vec 2.0's layers behind a deep stack of position convolutions."""

from torch import Tensor
from torch.nn import functional

from service.model.backbones.wav2vec2 import Wav2Vec2Backbone
from service.model.layers import Module, Norming


class Data2VecAudioBackbone(Wav2Vec2Backbone):
    @property
    def front_norming(self) -> Norming:
        return Norming.LAYER

    def _load_positions(self) -> Module:
        names = [f"encoder.pos_conv_embed.layers.{i}.conv" for i in range(self._config.num_conv_pos_embeddings)]
        stack = [self._position_convolution(name, self._tensors[f"{name}.weight"]) for name in names]

        def positions(hidden: Tensor) -> Tensor:
            for convolution in stack:
                convolved = convolution(hidden).float()
                hidden = self._front_activation(functional.layer_norm(convolved, convolved.shape[2:]))
            return hidden

        return positions
