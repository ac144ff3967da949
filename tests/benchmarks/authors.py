"""The authors' form on Hugging Face modules: prompts are tokens, prepended before each layer and cut off after it.

One adapter is active at a time; another task means another state dict. Knows nothing of `service.model`'s forward.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from service.model.adapter import AdapterSpec
from service.model.parts import bottleneck as parts
from service.model.spec import ModelType
from tests.benchmarks.geometry import pool


class Bottleneck(nn.Module):
    """`scale * up(relu(down(x)))`, plus `x` where the adapter has a residual."""

    def __init__(self, width: int, spec: AdapterSpec) -> None:
        super().__init__()
        part = spec.find(parts.Bottleneck) or parts.Bottleneck()
        self.down = nn.Linear(width, part.bottleneck_dim)
        self.up = nn.Linear(part.bottleneck_dim, width)
        self._scale, self._residual = part.adapter_scale, part.adapter_residual

    def forward(self, x: Tensor) -> Tensor:
        out = self.up(torch.relu(self.down(x))) * self._scale
        return out + x if self._residual else out


class LayerPart(nn.Module):
    """What an adapter adds to one layer."""

    def __init__(self, width: int, spec: AdapterSpec) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.zeros(spec.sizes["prompt_length"], width))
        self.adapter = Bottleneck(width, spec)


class AuthorsForm(nn.Module):
    """A frozen Hugging Face backbone with one adapter; `swap` makes it another task's."""

    def __init__(self, module: nn.Module, model_type: ModelType, spec: AdapterSpec) -> None:
        super().__init__()
        self._frozen = [module]  # in a list, so that the state dict is the adapter's alone
        self._model_type = model_type
        width, layers = module.config.hidden_size, module.config.num_hidden_layers
        self.layers = nn.ModuleList(LayerPart(width, spec) for _ in range(layers))
        self.requires_grad_(False)

    def swap(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads another adapter, by the contract's tensor names; its head is not part of the backbone's forward."""
        self.load_state_dict({name: tensor for name, tensor in tensors.items() if name.startswith("layers.")})

    def forward(self, inputs: Tensor) -> Tensor:
        """Windows `[B, ...]` -> embeddings `[B, E]`."""
        module = self._frozen[0]
        if self._model_type is ModelType.AST:
            hidden = module.embeddings(inputs)
            for layer, part in zip(module.layers, self.layers, strict=True):
                hidden = _cut(part, _ast_layer(layer, part, _prepend(part, hidden)))
            return pool(self._model_type, module.layernorm(hidden))
        hidden, _ = module.feature_projection(module.feature_extractor(inputs).transpose(1, 2))
        encoder = module.encoder
        hidden = encoder.layer_norm(hidden + encoder.pos_conv_embed(hidden))
        for layer, part in zip(encoder.layers, self.layers, strict=True):
            hidden = _cut(part, _wav2vec2_layer(layer, part, _prepend(part, hidden)))
        return pool(self._model_type, hidden)


def _prepend(part: LayerPart, hidden: Tensor) -> Tensor:
    return torch.cat((part.prompt.expand(len(hidden), -1, -1), hidden), dim=1)


def _cut(part: LayerPart, hidden: Tensor) -> Tensor:
    return hidden[:, len(part.prompt) :]


def _ast_layer(layer: nn.Module, part: LayerPart, x: Tensor) -> Tensor:
    x = x + layer.attention(layer.layernorm_before(x))[0]
    return x + layer.mlp(layer.layernorm_after(x)) + part.adapter(x)


def _wav2vec2_layer(layer: nn.Module, part: LayerPart, x: Tensor) -> Tensor:
    x = x + layer.attention(x)[0]
    h = layer.layer_norm(x)
    return layer.final_layer_norm(h + layer.feed_forward(h) + part.adapter(x))
