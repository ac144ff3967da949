"""Task heads on a clip's embedding. Knows neither the backbone nor what becomes of the answers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from service.model.spec import TaskType

NORM_EPS = 1e-5  # of the head's layer norm, as in the authors' code


@dataclass(frozen=True, slots=True)
class ClassificationHead:
    """`linear(layer_norm(e))`, contract section 3."""

    norm_weight: Tensor  # [E]
    norm_bias: Tensor  # [E]
    weight: Tensor  # [C, E]
    bias: Tensor  # [C]

    def __call__(self, embeddings: Tensor) -> Tensor:
        """`[B, E]` -> logits `[B, C]`, float32."""
        normed = functional.layer_norm(
            embeddings.float(), self.norm_weight.shape, self.norm_weight, self.norm_bias, NORM_EPS
        )
        return functional.linear(normed, self.weight, self.bias)

    def to_tensors(self) -> dict[str, Tensor]:
        return {
            "head.norm.weight": self.norm_weight,
            "head.norm.bias": self.norm_bias,
            "head.linear.weight": self.weight,
            "head.linear.bias": self.bias,
        }


@dataclass(frozen=True, slots=True)
class VerificationHead:
    """`embedding(e)`, contract section 3."""

    weight: Tensor  # [embedding_dim, E]
    bias: Tensor  # [embedding_dim]

    def __call__(self, embeddings: Tensor) -> Tensor:
        """`[B, E]` -> speaker embeddings `[B, embedding_dim]`, float32, not normalised."""
        return functional.linear(embeddings.float(), self.weight, self.bias)

    def to_tensors(self) -> dict[str, Tensor]:
        return {"head.embedding.weight": self.weight, "head.embedding.bias": self.bias}


Head = ClassificationHead | VerificationHead


def head_from_tensors(task: TaskType, tensors: Mapping[str, Tensor]) -> Head:
    """The head of a bundle's tensors, in float32 on their device."""

    def take(name: str) -> Tensor:
        return tensors[name].to(torch.float32)

    if task is TaskType.CLASSIFICATION:
        return ClassificationHead(
            take("head.norm.weight"),
            take("head.norm.bias"),
            take("head.linear.weight"),
            take("head.linear.bias"),
        )
    return VerificationHead(take("head.embedding.weight"), take("head.embedding.bias"))


def move_head(head: Head, device: torch.device) -> Head:
    """A copy of `head` whose tensors lie on `device`."""
    task = TaskType.CLASSIFICATION if isinstance(head, ClassificationHead) else TaskType.VERIFICATION
    return head_from_tensors(task, {name: tensor.to(device) for name, tensor in head.to_tensors().items()})
