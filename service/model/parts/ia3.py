"""IA3 (arXiv 2205.05638): vectors that scale the outputs or the inputs of a layer's linear maps."""

from dataclasses import replace
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from service.model.parts.low_rank import Target
from service.model.parts.part import Change, Part, Shapes, Source, each_layer, problem
from service.model.spec import BackboneSpec


class Vectors(BaseModel):
    """The manifest's section `ia3`: the targets whose outputs and whose inputs are scaled."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    output: list[Target] = Field(default_factory=list, description="Maps whose outputs are scaled.")
    input: list[Target] = Field(default_factory=list, description="Maps whose inputs are scaled.")

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        if not self.output and not self.input:
            raise problem("ia3: expected targets under output or input, got none")
        both = sorted(set(self.output) & set(self.input))
        if both:
            raise problem(f"ia3: {both[0]} is under output and input; a target has one vector")
        return self


class IA3(Part):
    """`ia3`: `layers.{i}.ia3.{t}`, `[out]` of a target under `output`, `[in]` of one under `input`."""

    family: ClassVar = "ia3"
    since: ClassVar = {"ia3": 3}

    ia3: Vectors | None = None

    @property
    def is_held(self) -> bool:
        return self.ia3 is not None

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        vectors = self.ia3 or Vectors(output=["k"])
        sides = {t: backbone.target_shape(t)[0] for t in vectors.output}
        sides |= {t: backbone.target_shape(t)[1] for t in vectors.input}
        return each_layer(backbone, {f"ia3.{target}": (side,) for target, side in sides.items()})

    def change(self, target: str, change: Change, source: Source) -> Change:
        if self.ia3 is None or target not in (*self.ia3.output, *self.ia3.input):
            return change
        vector = source.stack(f"ia3.{target}")[:, None]  # [L, 1, out] or [L, 1, in]
        if target in self.ia3.input:
            return replace(change, input=vector)
        scaled = {n: t * vector for n in ("b", "scale", "shift") if (t := getattr(change, n)) is not None}
        return replace(change, **{"scale": vector, **scaled})

    def initialise(self, name: str, parameter: Tensor) -> None:
        nn.init.ones_(parameter)
