"""One adapter's tensors, at rest and in training. Knows neither files nor slots."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from service.model.heads import Head, head_from_tensors
from service.model.input_prompt import PREFIX as INPUT_PROMPT
from service.model.input_prompt import InputPrompt
from service.model.spec import AdapterSpec, BackboneSpec, TaskType, expected_shapes

_PARTS = {
    "prompts": "prompt",
    "down_weight": "adapter.down.weight",
    "down_bias": "adapter.down.bias",
    "up_weight": "adapter.up.weight",
    "up_bias": "adapter.up.bias",
    "conv_weight": "adapter.conv.weight",
    "conv_bias": "adapter.conv.bias",
}
_LAYER_WEIGHTS = "head.layers.weight"


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """The weights of one adapter, layers stacked. Parts that the adapter does not have (as with P = 0) are None."""

    spec: AdapterSpec
    head: Head
    prompts: Tensor | None  # [L, P, D]
    down_weight: Tensor | None  # [L, R, D]
    down_bias: Tensor | None  # [L, R]
    up_weight: Tensor | None  # [L, D, R]
    up_bias: Tensor | None  # [L, D]
    conv_weight: Tensor | None = None  # [L, R, K]
    conv_bias: Tensor | None = None  # [L, R]
    layer_weights: Tensor | None = None  # [L + 1], before the softmax
    input_prompt: InputPrompt | None = None

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
            layer_weights=tensors[_LAYER_WEIGHTS].to(torch.float32) if spec.layer_aggregation else None,
            input_prompt=InputPrompt.from_tensors(tensors) if spec.input_prompt else None,
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors under the contract's names, detached, on the CPU."""
        tensors = self.head.to_tensors()
        for field, part in _PARTS.items():
            stacked: Tensor | None = getattr(self, field)
            for i, tensor in enumerate(stacked if stacked is not None else ()):
                tensors[f"layers.{i}.{part}"] = tensor
        if self.layer_weights is not None:
            tensors[_LAYER_WEIGHTS] = self.layer_weights
        if self.input_prompt is not None:
            tensors |= self.input_prompt.to_tensors()
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def head_alone(self) -> "AdapterWeights":
        """What reads the bare backbone: the head, with its layer weights, and nothing that changes the backbone."""
        spec = replace(self.spec, prompt_length=0, bottleneck_dim=0, conv_kernel=0, input_prompt=0, input_frames=0)
        return AdapterWeights(spec, self.head, None, None, None, None, None, layer_weights=self.layer_weights)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.to_tensors().values())


class TrainableAdapter(nn.Module):
    """The parameters of one adapter in training.

    Prompts start xavier-uniform, down-projections Kaiming-uniform, up-projections and the biases at zero, so that
    training starts from the backbone's own answers but for the prompts (the paper's text; its code overwrites the
    zeros by accident). Convolutions start as the identity, so at the plain bottleneck, input prompts at zero, and
    layer weights at zero, which is the mean over layers. Parameters carry the contract's tensor names with dots as
    double underscores.
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
        elif name.endswith("conv.weight"):
            parameter[:, parameter.shape[1] // 2] = 1.0


def parameter_counts(spec: AdapterSpec, backbone: BackboneSpec) -> dict[str, int]:
    """Trainable parameters by part: `prompt` (of the input too), `adapter`, `head` (layer weights too)."""
    counts = {"prompt": 0, "adapter": 0, "head": 0}
    for name, shape in expected_shapes(spec, backbone).items():
        is_prompt = name.endswith(".prompt") or name.startswith(INPUT_PROMPT)
        part = "head" if name.startswith("head.") else "prompt" if is_prompt else "adapter"
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
