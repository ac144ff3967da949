"""One adapter: its geometry, its tensors at rest, and its parameters in training."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from service.model.parts.part import Frozen, Part, Shapes
from service.model.spec import BackboneSpec, TaskType

P = TypeVar("P", bound=Part)


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Geometry of one adapter: the parts that it holds, its head among them."""

    parts: tuple[Part, ...]

    def find(self, kind: type[P]) -> P | None:
        """The part of this kind; None where the adapter has none."""
        return next((part for part in self.parts if isinstance(part, kind)), None)

    @property
    def task_type(self) -> TaskType:
        task: TaskType = self._head.task_type
        return task

    @property
    def outputs(self) -> int:
        """C classes, or the embedding dimension for speaker verification."""
        outputs: int = self._head.outputs
        return outputs

    @property
    def sizes(self) -> dict[str, int]:
        """What of it a server limits, by the manifest's names."""
        return {name: size for part in self.parts for name, size in part.sizes.items()}

    @property
    def families(self) -> list[str]:
        """What it is made of, by the names of the training methods; `linear` is a head alone."""
        held = [part.family for part in self.parts if part.family]
        if {"prompt", "adapter"} <= set(held):
            held = ["ipet", *(family for family in held if family not in ("prompt", "adapter"))]
        return held or ["linear"]

    @property
    def _head(self) -> Any:
        return next(part for part in self.parts if part.counted_as == "head" and hasattr(part, "outputs"))

    @property
    def format_version(self) -> int:
        """The bundle format's oldest version that can hold this adapter."""
        return max((part.format_version for part in self.parts), default=1)

    def shapes(self, backbone: BackboneSpec, names: Collection[str] = ()) -> Shapes:
        """Names and shapes of every tensor of a bundle's weights file (contract, sections 2 and 5), layer by layer.

        The order is that in which a seed draws their first values.

        Args:
            names: of the tensors that a file has; what a bundle may have and the file begins is expected whole.
        """
        shapes = {name: shape for part in self.parts for name, shape in part.shapes(backbone).items()}
        for table in self.optional_shapes(backbone) if names else ():
            shapes |= table if any(name in names for name in table) else {}
        return dict(sorted(shapes.items(), key=lambda entry: _position(entry[0])))

    def optional_shapes(self, backbone: BackboneSpec) -> list[Shapes]:
        """Tables of tensors that a bundle may have beside these, of each all or none."""
        return [table for part in self.parts for table in part.optional_shapes(backbone)]


def _position(name: str) -> int:
    kind, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if kind == "layers" else -1 if kind == "input" else 2**31


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """The weights of one adapter under the contract's names, float32."""

    spec: AdapterSpec
    tensors: Mapping[str, Tensor]

    @classmethod
    def from_tensors(cls, spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> "AdapterWeights":
        """The weights of a bundle's tensors, already validated, in float32."""
        return cls(spec, {name: tensor.to(torch.float32) for name, tensor in tensors.items()})

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors under the contract's names, detached, on the CPU."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}

    def head_alone(self) -> "AdapterWeights":
        """What reads the bare backbone: the head, with its layer weights, and nothing that changes the backbone."""
        spec = AdapterSpec(tuple(part for part in self.spec.parts if part.counted_as == "head"))
        return AdapterWeights(spec, {name: t for name, t in self.tensors.items() if name.startswith("head.")})


class TrainableAdapter(nn.Module):
    """The parameters of one adapter in training.

    What is added to the backbone starts at zero or as the identity, prompts aside, so that training starts from the
    backbone's own answers (the paper's text; its code overwrites the zeros by accident). Parameters carry the
    contract's tensor names with dots as double underscores.
    """

    def __init__(self, spec: AdapterSpec, backbone: BackboneSpec, device: torch.device | None = None) -> None:
        super().__init__()
        self.spec = spec
        part_of = {name: part for part in spec.parts for name in part.shapes(backbone)}
        for name, shape in spec.shapes(backbone).items():
            parameter = nn.Parameter(torch.zeros(shape, device=device))
            with torch.no_grad():
                part_of[name].initialise(name, parameter)
            self.register_parameter(name.replace(".", "__"), parameter)

    @torch.no_grad()
    def start(self, backbone: Frozen) -> None:
        """Fill what starts from the backbone's own weights."""
        named = {name.replace("__", "."): parameter for name, parameter in self.named_parameters()}
        for part in self.spec.parts:
            part.start(named, backbone)

    def weights(self) -> AdapterWeights:
        """The adapter as the forward takes it; gradients reach the parameters."""
        tensors = {name.replace("__", "."): parameter for name, parameter in self.named_parameters()}
        return AdapterWeights.from_tensors(self.spec, tensors)


def parameter_counts(spec: AdapterSpec, backbone: BackboneSpec) -> dict[str, int]:
    """Trainable parameters by part: `prompt` (of the input too), `adapter`, `head` (layer weights too)."""
    counts = {"prompt": 0, "adapter": 0, "head": 0}
    for part in spec.parts:
        counts[part.counted_as] += sum(torch.Size(shape).numel() for shape in part.shapes(backbone).values())
    return counts
