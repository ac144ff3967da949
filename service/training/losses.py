"""Losses over an adapter's outputs, and the classifier over speakers that exists in training only."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.training.batches import Wanted
from service.training.recipe import Loss


def shares(wanted: Sequence[Wanted], classes: int) -> Tensor:
    """How much of each class is in each row: `[B, classes]`, several ones where a clip has several labels."""
    hot = torch.zeros(len(wanted), classes)
    for row, each in enumerate(wanted):
        for targets, share in ((each.targets, each.share), (each.partners, 1.0 - each.share)):
            hot[row, list(targets)] += share
    return hot


class ClassLoss(nn.Module):
    """Cross entropy, or binary cross entropy of each class by itself, of class logits, mixtures included."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self._loss = loss

    def forward(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Logits and shares of the classes, both `[B, C]` -> scalar."""
        smoothing = self._loss.label_smoothing
        if self._loss.kind == "binary_cross_entropy":
            wanted = wanted * (1 - smoothing) + smoothing / 2
            return functional.binary_cross_entropy_with_logits(logits, wanted)
        return functional.cross_entropy(logits, wanted, label_smoothing=smoothing)


class SpeakerLoss(nn.Module):
    """Tells training speakers apart by their voiceprints; its parameters are not part of the bundle.

    `cross_entropy`: layer norm and a linear layer (the paper). `am_softmax`: `scale * (cos - margin)` on the right
    speaker (Wang et al. 2018). `aam_softmax`: `scale * cos(angle + margin)` (ArcFace, Deng et al. 2019). Both speakers
    of a mixture have their margin.
    """

    def __init__(self, loss: Loss, embedding_dim: int, speakers: int) -> None:
        super().__init__()
        self._loss = loss
        if loss.kind == "cross_entropy":
            self.norm = nn.LayerNorm(embedding_dim)
            self.linear = nn.Linear(embedding_dim, speakers)
        else:
            self.prototypes = nn.Parameter(nn.init.xavier_normal_(torch.empty(speakers, embedding_dim)))

    @torch.no_grad()
    def start_from(self, means: Tensor) -> None:
        """Put the prototypes where the speakers `[speakers, dim]` are; without prototypes nothing happens."""
        if self._loss.kind != "cross_entropy":
            self.prototypes.copy_(functional.normalize(means))

    def forward(self, embeddings: Tensor, wanted: Tensor) -> Tensor:
        """Embeddings `[B, dim]` and shares of the speakers `[B, speakers]` -> scalar."""
        if self._loss.kind == "cross_entropy":
            logits = self.linear(self.norm(embeddings))
        else:
            cosines = functional.normalize(embeddings) @ functional.normalize(self.prototypes).T
            logits = self._loss.scale * torch.where(wanted > 0, self._with_margin(cosines), cosines)
        return functional.cross_entropy(logits, wanted, label_smoothing=self._loss.label_smoothing)

    def _with_margin(self, cosines: Tensor) -> Tensor:
        margin = self._loss.margin
        if self._loss.kind == "am_softmax":
            return cosines - margin
        sine = (1 - cosines.square()).clamp_min(1e-6).sqrt()
        moved = cosines * math.cos(margin) - sine * math.sin(margin)
        # Beyond pi - margin the cosine would rise again: go on falling in a straight line (ArcFace).
        return torch.where(cosines > math.cos(math.pi - margin), moved, cosines - margin * math.sin(margin))
