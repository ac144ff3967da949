"""Prompts: tokens before each layer, cut off behind it, so that only their keys and values are ever met (IPET).

The prompt of a layer depends on no input. Its keys and values are computed when the adapter is loaded, and the
sequence never grows (contract, section 3: the layer's output at the prompt's positions is cut off).
"""

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from service.model.parts.part import Part, Shapes, each_layer
from service.model.parts.targets import Changes
from service.model.spec import BackboneSpec

if TYPE_CHECKING:
    from service.model.adapter import AdapterWeights
    from service.model.backbone import Backbone


class Prompt(Part):
    """`prompt_length` P: `layers.{i}.prompt` `[P, D]`."""

    always: ClassVar = ("prompt_length",)
    counted_as: ClassVar = "prompt"
    limits: ClassVar = {"prompt_length": 128}

    prompt_length: int = Field(default=0, ge=0)

    @property
    def is_held(self) -> bool:
        return self.prompt_length > 0

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        return each_layer(backbone, {"prompt": (self.prompt_length, backbone.hidden_size)})

    def prefix(self, weights: "AdapterWeights", backbone: "Backbone", changes: Changes) -> tuple[Tensor, Tensor]:
        folded = [backbone.fold_prompt(i, prompt, changes) for i, prompt in enumerate(weights.stack("prompt"))]
        return torch.stack([keys for keys, _ in folded]), torch.stack([values for _, values in folded])

    def initialise(self, name: str, parameter: Tensor) -> None:
        nn.init.xavier_uniform_(parameter)
