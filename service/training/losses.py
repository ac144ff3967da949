"""Losses over an adapter's outputs, and the classifier over speakers that exists in training only. Knows no audio."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.training.batches import Wanted
from service.training.recipe import Loss


@dataclass(frozen=True, slots=True)
class Targets:
    """What a batch should be answered with, as tensors `[B]` on one device.

    Args:
        target: the clip's class, the first one where it has several.
        partner: the same of the clip that it was mixed with.
        share: share of the clip itself.
        wanted: the rows with all their classes.
    """

    target: Tensor
    partner: Tensor
    share: Tensor
    wanted: tuple[Wanted, ...]

    @classmethod
    def of(cls, wanted: Sequence[Wanted], device: torch.device) -> "Targets":
        return cls(
            torch.tensor([each.targets[0] for each in wanted], device=device),
            torch.tensor([each.partners[0] for each in wanted], device=device),
            torch.tensor([each.share for each in wanted], dtype=torch.float32, device=device),
            tuple(wanted),
        )

    def hot(self, classes: int) -> Tensor:
        """How much of each class is in each row: `[B, classes]`, several ones where a clip has several labels."""
        hot = torch.zeros(len(self.wanted), classes)
        for row, each in enumerate(self.wanted):
            for labels, share in ((each.targets, each.share), (each.partners, 1.0 - each.share)):
                hot[row, list(labels)] += share
        return hot.to(self.share.device)


class ClassLoss(nn.Module):
    """Cross entropy, or binary cross entropy of each class by itself, of class logits, mixtures included."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self._loss = loss

    def forward(self, logits: Tensor, targets: Targets) -> Tensor:
        """Logits `[B, C]` -> scalar."""
        wanted = targets.hot(logits.shape[1])
        smoothing = self._loss.label_smoothing
        if self._loss.kind == "binary_cross_entropy":
            wanted = wanted * (1 - smoothing) + smoothing / 2
            return functional.binary_cross_entropy_with_logits(logits, wanted)
        return functional.cross_entropy(logits, wanted, label_smoothing=smoothing)


class SpeakerLoss(nn.Module):
    """Tells training speakers apart by their voiceprints; its parameters are not part of the bundle.

    `cross_entropy`: layer norm and a linear layer (the paper). `am_softmax`: `scale * (cos - margin)` on the right
    speaker (Wang et al. 2018). `aam_softmax`: `scale * cos(angle + margin)` (ArcFace, Deng et al. 2019).
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

    def forward(self, embeddings: Tensor, targets: Targets) -> Tensor:
        """Embeddings `[B, dim]` -> scalar."""
        target, partner, shares = targets.target, targets.partner, targets.share
        if self._loss.kind == "cross_entropy":
            wanted_logits = other_logits = self.linear(self.norm(embeddings))
        else:
            cosines = functional.normalize(embeddings) @ functional.normalize(self.prototypes).T
            wanted_logits, other_logits = self._with_margin(cosines, target), self._with_margin(cosines, partner)
        smoothing = self._loss.label_smoothing
        losses = functional.cross_entropy(wanted_logits, target, reduction="none", label_smoothing=smoothing)
        if bool((shares == 1).all()):
            return losses.mean()
        others = functional.cross_entropy(other_logits, partner, reduction="none", label_smoothing=smoothing)
        return (shares * losses + (1 - shares) * others).mean()

    def _with_margin(self, cosines: Tensor, targets: Tensor) -> Tensor:
        chosen = cosines.gather(1, targets[:, None])
        if self._loss.kind == "am_softmax":
            moved = chosen - self._loss.margin
        else:
            margin = self._loss.margin
            sine = (1 - chosen.square()).clamp_min(1e-6).sqrt()
            moved = chosen * math.cos(margin) - sine * math.sin(margin)
            # Beyond pi - margin the cosine would rise again: go on falling in a straight line (ArcFace).
            moved = torch.where(chosen > math.cos(math.pi - margin), moved, chosen - margin * math.sin(margin))
        return self._loss.scale * cosines.scatter(1, targets[:, None], moved)
