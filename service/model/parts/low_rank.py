"""LoRA (arXiv 2106.09685), rank-stabilised LoRA (2312.03732) and DoRA (2402.09353) on a layer's linear maps."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from service.model.parts.part import Part, Shapes, pad, problem
from service.model.parts.targets import TARGETS, Change, target_shape
from service.model.spec import BackboneSpec

if TYPE_CHECKING:
    from service.model.adapter import AdapterWeights
    from service.model.backbone import Backbone

MAX_RANK = 128
Target = Literal["q", "k", "v", "o", "fc1", "fc2"]


class Lora(BaseModel):
    """The manifest's section `lora`. Keys of the patterns are a target, `q`, or one of a layer, `3.q`.

    Args:
        targets: which maps have matrices, in every layer; None for those that the weights have.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    r: int = Field(ge=1, le=2**20)
    alpha: float = Field(ge=-1e6, le=1e6)
    rslora: bool = False
    dora: bool = False
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    targets: list[Target] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check_patterns(self) -> Self:
        for field, pattern in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            for key, value in pattern.items():
                layer, _, target = key.rpartition(".")
                if target not in TARGETS or not (layer.isdecimal() or "." not in key):
                    raise problem(
                        f"lora.{field}: expected keys like q or 3.q, a target of {' '.join(TARGETS)}, got {key[:40]!r}"
                    )
                if field == "rank_pattern" and value < 1:
                    raise problem(f"lora.rank_pattern.{key}: expected a rank of 1 or more, got {value}")
        return self

    def rank(self, layer: int, target: str) -> int:
        return self.rank_pattern.get(f"{layer}.{target}", self.rank_pattern.get(target, self.r))

    def factor(self, layer: int, target: str) -> float:
        """What the product of the matrices is multiplied by."""
        alpha = self.alpha_pattern.get(f"{layer}.{target}", self.alpha_pattern.get(target, self.alpha))
        rank = self.rank(layer, target)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


class LowRank(Part):
    """`lora`: `layers.{i}.lora.{t}.a` `[r, in]`, `.b` `[out, r]`, and with `dora` `.magnitude` `[out]`."""

    since: ClassVar = {"lora": 3}
    limits: ClassVar = {"lora.r": MAX_RANK}

    lora: Lora | None = None

    @property
    def is_held(self) -> bool:
        return self.lora is not None

    @property
    def section(self) -> Lora:
        return self.lora or Lora(r=1, alpha=0.0)

    @property
    def sizes(self) -> dict[str, int]:
        return {"lora.r": max(self.section.r, *self.section.rank_pattern.values(), 1)}

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        found: Shapes = {}
        for i in range(backbone.num_hidden_layers) if self.section.targets else ():
            for target in dict.fromkeys(self.section.targets or ()):
                found |= self._of_target(i, target, backbone)
        return found

    def optional_shapes(self, backbone: BackboneSpec) -> list[Shapes]:
        if self.section.targets is not None:
            return []
        layers = range(backbone.num_hidden_layers)
        return [self._of_target(i, target, backbone) for i in layers for target in TARGETS]

    def _of_target(self, layer: int, target: str, backbone: BackboneSpec) -> Shapes:
        (out, inside), rank = target_shape(target, backbone), self.section.rank(layer, target)
        name = f"layers.{layer}.lora.{target}"
        shapes: Shapes = {f"{name}.a": (rank, inside), f"{name}.b": (out, rank)}
        return shapes | ({f"{name}.magnitude": (out,)} if self.section.dora else {})

    def change(self, target: str, change: Change, weights: "AdapterWeights", backbone: "Backbone") -> Change:
        layers = range(backbone.spec.num_hidden_layers)
        held = [i for i in layers if f"layers.{i}.lora.{target}.a" in weights.tensors]
        if not held:
            return change
        (out, inside), rank = target_shape(target, backbone.spec), max(self.section.rank(i, target) for i in held)
        empty = next(iter(weights.tensors.values()))
        a, b, scale, shift = [], [], [], []
        for i in layers:
            if i in held:
                down, up, factor, moved = self._fold(i, target, weights.tensors, backbone)
            else:
                down, up = empty.new_zeros(inside, rank), empty.new_zeros(rank, out)
                factor, moved = empty.new_ones(out), empty.new_zeros(out)
            a.append(pad(down, 1, rank))
            b.append(pad(up, 0, rank))
            scale.append(factor)
            shift.append(moved)
        if not self.section.dora:
            return Change(torch.stack(a), torch.stack(b), change.scale, change.shift, change.input)
        scales, shifts = torch.stack(scale)[:, None], torch.stack(shift)[:, None]
        return Change(torch.stack(a), torch.stack(b), scales, shifts, change.input)

    def _fold(
        self, layer: int, target: str, tensors: Mapping[str, Tensor], backbone: "Backbone"
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A target's `a` `[in, r]`, `b` `[r, out]`, and what DoRA makes of the output: factor and shift, `[out]`.

        DoRA: `(m / n) (W x + s b a x) + bias` is `y (m / n) + (m / n) s b a x + bias (1 - m / n)`, y with its bias. The
        norms n are constants to the gradient (the paper's section 4.3).
        """
        name = f"layers.{layer}.lora.{target}"
        a, b = tensors[f"{name}.a"].T, tensors[f"{name}.b"].T * self.section.factor(layer, target)
        if not self.section.dora:
            return a, b, b.new_ones(b.shape[1]), b.new_zeros(b.shape[1])
        weight, bias = backbone.exact_linear(layer, target)
        norm = torch.linalg.vector_norm((weight + (a @ b).T.detach()).float(), dim=1)
        factor = tensors[f"{name}.magnitude"] / norm
        shift = b.new_zeros(b.shape[1]) if bias is None else bias * (1 - factor)
        return a, b * factor, factor, shift

    def initialise(self, name: str, parameter: Tensor) -> None:
        if name.endswith(".a"):  # b stays zero
            nn.init.kaiming_uniform_(parameter, a=5**0.5)

    def start(self, parameters: Mapping[str, Tensor], backbone: "Backbone") -> None:
        for name, parameter in parameters.items():
            if name.endswith(".magnitude"):
                _, layer, _, target, _ = name.split(".")
                parameter.copy_(torch.linalg.vector_norm(backbone.exact_linear(int(layer), target)[0], dim=1))
