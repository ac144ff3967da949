"""One adapter's tensors, at rest and in training."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from service.model.spec import AdapterSpec, BackboneSpec, expected_shapes

if TYPE_CHECKING:
    from service.model.backbone import Backbone


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """The weights of one adapter under the contract's names, float32."""

    spec: AdapterSpec
    tensors: Mapping[str, Tensor]

    @classmethod
    def from_tensors(cls, spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> "AdapterWeights":
        """The weights of a bundle's tensors, already validated, in float32."""
        return cls(spec, {name: tensor.to(torch.float32) for name, tensor in tensors.items()})

    def stack(self, part: str) -> Tensor:
        """The tensors `layers.{i}.{part}` of all layers, `[L, ...]`. Raises KeyError where there are none."""
        found = [self.tensors[f"layers.0.{part}"]]
        while (name := f"layers.{len(found)}.{part}") in self.tensors:
            found.append(self.tensors[name])
        return torch.stack(found)

    def to(self, device: torch.device) -> "AdapterWeights":
        """The weights on a device."""
        return AdapterWeights(self.spec, {name: tensor.to(device) for name, tensor in self.tensors.items()})

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
        for name, shape in expected_shapes(spec, backbone).items():
            parameter = nn.Parameter(torch.zeros(shape, device=device))
            with torch.no_grad():
                part_of[name].initialise(name, parameter)
            self.register_parameter(name.replace(".", "__"), parameter)

    @torch.no_grad()
    def start(self, backbone: "Backbone") -> None:
        """Fill what starts from the backbone's own weights."""
        named = {name.replace("__", "."): parameter for name, parameter in self.named_parameters()}
        for part in self.spec.parts:
            part.start(named, backbone)

    def weights(self) -> AdapterWeights:
        """The adapter as the forward takes it; gradients reach the parameters."""
        tensors = {name.replace("__", "."): parameter for name, parameter in self.named_parameters()}
        return AdapterWeights.from_tensors(self.spec, tensors)

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def parameter_counts(spec: AdapterSpec, backbone: BackboneSpec) -> dict[str, int]:
    """Trainable parameters by part: `prompt` (of the input too), `adapter`, `head` (layer weights too)."""
    counts = {"prompt": 0, "adapter": 0, "head": 0}
    for part in spec.parts:
        counts[part.counted_as] += sum(torch.Size(shape).numel() for shape in part.shapes(backbone).values())
    return counts


def random_adapter(
    spec: AdapterSpec, backbone: BackboneSpec, seed: int = 0, std: float = 0.02, names: Collection[str] = ()
) -> AdapterWeights:
    """An adapter of normally distributed weights, around one for what multiplies: for tests and benchmarks.

    Args:
        names: of optional tensors that it has.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_shapes(spec, backbone, names).items():
        centre = 1.0 if name.endswith(("norm.weight", ".magnitude")) or ".ia3." in name else 0.0
        tensors[name] = torch.randn(shape, generator=generator) * std + centre
    return AdapterWeights.from_tensors(spec, tensors)
