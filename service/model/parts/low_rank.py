"""LoRA (arXiv 2106.09685), rank-stabilised LoRA (2312.03732) and DoRA (2402.09353) on a layer's linear maps."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from service.model.parts.part import Change, Frozen, Part, Shapes, Source, pad, problem
from service.model.spec import TARGETS, BackboneSpec

MAX_RANK = 128
Target = Literal["q", "k", "v", "o", "fc1", "fc2"]


class Lora(BaseModel):
    """The manifest's section `lora`. Keys of the patterns are a target, `q`, or one of a layer, `3.q`.

    Args:
        targets: which maps have matrices, in every layer; None for those that the weights have.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    r: int = Field(ge=1, le=2**20, description="Rank.")
    alpha: float = Field(ge=-1e6, le=1e6, description="The product is multiplied by alpha / r.")
    rslora: bool = Field(default=False, description="By alpha / sqrt(r) instead.")
    dora: bool = Field(default=False, description="Magnitudes learn apart from directions.")
    rank_pattern: dict[str, int] = Field(default_factory=dict, description="Other ranks, by `q` or `3.q`.")
    alpha_pattern: dict[str, float] = Field(default_factory=dict, description="Other alphas, alike.")
    targets: list[Target] | None = Field(default=None, min_length=1, description="The maps that learn.")

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
    def family(self) -> str:  # type: ignore[override]
        return "dora" if self.section.dora else "lora"

    @property
    def section(self) -> Lora:
        return self.lora or Lora(r=1, alpha=0.0)

    @property
    def sizes(self) -> dict[str, int]:
        return {"lora.r": max(self.section.r, *self.section.rank_pattern.values(), 1)}

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        tables = self._tables(backbone, self.section.targets or ())
        return {name: shape for table in tables for name, shape in table.items()}

    def optional_shapes(self, backbone: BackboneSpec) -> list[Shapes]:
        return self._tables(backbone, TARGETS) if self.section.targets is None else []

    def _tables(self, backbone: BackboneSpec, targets: Iterable[str]) -> list[Shapes]:
        return [self._of_target(i, t, backbone) for i in range(backbone.num_hidden_layers) for t in targets]

    def _of_target(self, layer: int, target: str, backbone: BackboneSpec) -> Shapes:
        (out, inside), rank = backbone.target_shape(target), self.section.rank(layer, target)
        name = f"layers.{layer}.lora.{target}"
        shapes: Shapes = {f"{name}.a": (rank, inside), f"{name}.b": (out, rank)}
        return shapes | ({f"{name}.magnitude": (out,)} if self.section.dora else {})

    def change(self, target: str, change: Change, source: Source) -> Change:
        layers = range(source.backbone.spec.num_hidden_layers)
        held = [i for i in layers if f"layers.{i}.lora.{target}.a" in source.tensors]
        if not held:
            return change
        rank = max(self.section.rank(i, target) for i in held)
        a, b, factor, shift = map(torch.stack, zip(*(self._fold(i, target, rank, source) for i in layers), strict=True))
        change = replace(change, a=a, b=b)
        return replace(change, scale=factor[:, None], shift=shift[:, None]) if self.section.dora else change

    def _fold(self, layer: int, target: str, rank: int, source: Source) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A target's `a` `[in, r]`, `b` `[r, out]`, and what DoRA makes of the output: factor and shift, `[out]`.

        DoRA: `(m / n) (W x + s b a x) + bias` is `y (m / n) + (m / n) s b a x + bias (1 - m / n)`, y with its bias. The
        norms n are constants to the gradient (the paper's section 4.3).
        """
        name, tensors = f"layers.{layer}.lora.{target}", source.tensors
        (out, inside), like = source.backbone.spec.target_shape(target), next(iter(tensors.values()))
        factor, shift = like.new_ones(out), like.new_zeros(out)
        if f"{name}.a" not in tensors:
            return like.new_zeros(inside, rank), like.new_zeros(rank, out), factor, shift
        a, b = tensors[f"{name}.a"].T, tensors[f"{name}.b"].T * self.section.factor(layer, target)
        if self.section.dora:
            weight, bias = source.backbone.exact_linear(layer, target, a.device)
            norm = torch.linalg.vector_norm((weight + (a @ b).T.detach()).float(), dim=1)
            factor = tensors[f"{name}.magnitude"] / norm
            shift = shift if bias is None else bias * (1 - factor)
            b = b * factor
        return pad(a, 1, rank), pad(b, 0, rank), factor, shift

    def initialise(self, name: str, parameter: Tensor) -> None:
        if name.endswith(".a"):  # b stays zero
            nn.init.kaiming_uniform_(parameter, a=5**0.5)

    def start(self, parameters: Mapping[str, Tensor], backbone: Frozen) -> None:
        for name, parameter in parameters.items():
            if name.endswith(".magnitude"):
                _, layer, _, target, _ = name.split(".")
                weight, _ = backbone.exact_linear(int(layer), target, parameter.device)
                parameter.copy_(torch.linalg.vector_norm(weight, dim=1))
