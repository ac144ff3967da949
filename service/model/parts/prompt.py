"""Prompts: tokens before each layer, cut off behind it, so that only their keys and values are ever met (IPET).

The prompt of a layer depends on no input. Its keys and values are computed when the adapter is loaded, and the
sequence never grows (contract, section 3: the layer's output at the prompt's positions is cut off).
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from service.model.parts.part import Changes, Part, Shapes, Source, each_layer
from service.model.spec import BackboneSpec


class Prompt(Part):
    """`prompt_length` P: `layers.{i}.prompt` `[P, D]`."""

    family: ClassVar = "prompt"
    always: ClassVar = ("prompt_length",)
    counted_as: ClassVar = "prompt"
    limits: ClassVar = {"prompt_length": 128}

    prompt_length: int = Field(default=0, ge=0)

    @property
    def is_held(self) -> bool:
        return self.prompt_length > 0

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        return each_layer(backbone, {"prompt": (self.prompt_length, backbone.hidden_size)})

    def prefix(self, source: Source, changes: Changes) -> tuple[Tensor, Tensor]:
        prompts, device = source.stack("prompt"), source.backbone.device
        there = {target: changes[target].to(device) for target in ("k", "v") if target in changes}
        folded = [source.backbone.fold_prompt(i, prompt, there) for i, prompt in enumerate(prompts.to(device))]
        keys, values = (torch.stack(each).to(prompts.device) for each in zip(*folded, strict=True))
        return keys, values

    def initialise(self, name: str, parameter: Tensor) -> None:
        nn.init.xavier_uniform_(parameter)
