"""One adapter's tensors, at rest and in training. Knows neither files nor slots."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.model.heads import Head, head_from_tensors
from service.model.spec import AdapterSpec, BackboneSpec, TaskType, expected_shapes

_PARTS = {
    "prompts": "prompt",
    "down_weight": "adapter.down.weight",
    "down_bias": "adapter.down.bias",
    "up_weight": "adapter.up.weight",
    "up_bias": "adapter.up.bias",
}


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """The weights of one adapter, layers stacked. Parts that the adapter does not have (P = 0, R = 0) are None."""

    spec: AdapterSpec
    head: Head
    prompts: Tensor | None  # [L, P, D]
    down_weight: Tensor | None  # [L, R, D]
    down_bias: Tensor | None  # [L, R]
    up_weight: Tensor | None  # [L, D, R]
    up_bias: Tensor | None  # [L, D]

    @classmethod
    def from_tensors(cls, spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> "AdapterWeights":
        """Builds the weights from tensors of the contract's names, already validated, in float32."""
        layers = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("layers.")), default=-1)

        def stack(part: str) -> Tensor | None:
            if f"layers.0.{part}" not in tensors:
                return None
            return torch.stack([tensors[f"layers.{i}.{part}"].to(torch.float32) for i in range(layers)])

        return cls(
            spec,
            head_from_tensors(spec.task_type, tensors),
            **{field: stack(part) for field, part in _PARTS.items()},
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors under the contract's names, detached, on the CPU."""
        tensors = self.head.to_tensors()
        for field, part in _PARTS.items():
            stacked: Tensor | None = getattr(self, field)
            for i, tensor in enumerate(stacked if stacked is not None else ()):
                tensors[f"layers.{i}.{part}"] = tensor
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        parts = [getattr(self, field) for field in _PARTS]
        tensors = [part for part in parts if part is not None] + list(self.head.to_tensors().values())
        return sum(tensor.nbytes for tensor in tensors)


class TrainableAdapter(nn.Module):
    """The parameters of one adapter in training.

    Prompts start xavier-uniform, down-projections Kaiming-uniform, up-projections and the biases at zero, so that
    training starts from the backbone's own answers but for the prompts (the paper's text; its code overwrites the
    zeros by accident). Parameters carry the contract's tensor names with dots as double underscores.
    """

    def __init__(self, spec: AdapterSpec, backbone: BackboneSpec, device: torch.device | None = None) -> None:
        super().__init__()
        self.spec = spec
        for name, shape in expected_shapes(spec, backbone).items():
            parameter = nn.Parameter(torch.zeros(shape, device=device))
            _initialise(name, parameter)
            self.register_parameter(name.replace(".", "__"), parameter)

    def weights(self) -> AdapterWeights:
        """The adapter as the forward takes it; gradients reach the parameters."""
        tensors = {name.replace("__", "."): parameter for name, parameter in self.named_parameters()}
        return AdapterWeights.from_tensors(self.spec, tensors)

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def _initialise(name: str, parameter: Tensor) -> None:
    with torch.no_grad():
        if name.endswith(".prompt"):
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("down.weight"):
            nn.init.kaiming_uniform_(parameter, a=5**0.5)
        elif name in ("head.linear.weight", "head.embedding.weight"):
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name == "head.norm.weight":
            nn.init.ones_(parameter)


def parameter_counts(spec: AdapterSpec, backbone: BackboneSpec) -> dict[str, int]:
    """Trainable parameters by part: `prompt`, `adapter`, `head`."""
    counts = {"prompt": 0, "adapter": 0, "head": 0}
    for name, shape in expected_shapes(spec, backbone).items():
        part = "head" if name.startswith("head.") else "prompt" if name.endswith(".prompt") else "adapter"
        counts[part] += torch.Size(shape).numel()
    return counts


def random_adapter(spec: AdapterSpec, backbone: BackboneSpec, seed: int = 0, std: float = 0.02) -> AdapterWeights:
    """An adapter of normally distributed weights: for warming up, tests and benchmarks."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) * std for name, shape in expected_shapes(spec, backbone).items()
    }
    if spec.task_type is TaskType.CLASSIFICATION:
        tensors["head.norm.weight"] += 1.0
    return AdapterWeights.from_tensors(spec, tensors)
