"""Optimises one adapter, and in full fine-tuning the backbone under it, epoch by epoch.

Knows no files and no report part.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.model.adapter import AdapterSpec, AdapterWeights, TrainableAdapter
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.checkpoint import load_checkpoint
from service.model.noise import LayerNoise
from service.model.parts.input_prompt import InputPrompt
from service.model.spec import TaskType
from service.model.trainable import TrainableBackbone
from service.training.batches import Batches, Wanted
from service.training.checkpoint import moments_of, restore_moments
from service.training.headstart import class_means, classifier, discriminants
from service.training.loader import FrontEnd, Loader
from service.training.losses import ClassLoss, SpeakerLoss, shares
from service.training.ranks import Ranks
from service.training.recipe import BadRecipe, Optimiser, Recipe

HEAD_EPOCHS = 3  # epochs of examples that a head's start is computed from
BACKBONE = "backbone."  # before names of the backbone's tensors


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was learnt, detached: an adapter, and the backbone's tensors; None where that is frozen."""

    weights: AdapterWeights
    backbone: dict[str, Tensor] | None = None

    def to_tensors(self) -> dict[str, Tensor]:
        """All tensors under one name each, the backbone's behind a prefix."""
        backbone = {f"{BACKBONE}{name}": tensor for name, tensor in (self.backbone or {}).items()}
        return self.weights.to_tensors() | backbone

    @classmethod
    def from_tensors(cls, spec: AdapterSpec, tensors: dict[str, Tensor]) -> "Snapshot":
        """The inverse of `to_tensors`."""
        backbone = {n.removeprefix(BACKBONE): t for n, t in tensors.items() if n.startswith(BACKBONE)}
        adapter = {name: tensor for name, tensor in tensors.items() if not name.startswith(BACKBONE)}
        return cls(AdapterWeights.from_tensors(spec, adapter), backbone or None)


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


def learning_rate(optimiser: Optimiser, epoch: float, step: float = 0.0) -> float:
    """Rate of an epoch, counted from 1: the paper's staircase, or half a cosine over all epochs, behind the warm-up.

    Args:
        step: share of an epoch that one step is; the warm-up's first has its rate, not 0.
    """
    warm = min(1.0, (epoch - 1 + step) / optimiser.warm_up) if optimiser.warm_up else 1.0
    if optimiser.schedule == "paper":
        return warm * float(optimiser.lr * 0.85 ** min(max(math.floor(epoch) - 5, 0), 21))
    done = (epoch - 1) / optimiser.epochs
    return warm * optimiser.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _noise_of(recipe: Recipe, backbone: Backbone) -> LayerNoise:
    """What training does to the layers. Raises BadRecipe where frames are masked and the backbone never learnt that."""
    noise, masked = LayerNoise(recipe.adapter.dropout), recipe.augment.mask_time_prob
    if not recipe.backbone_dropouts and not masked:
        return noise
    checkpoint = load_checkpoint(backbone.spec.location)
    if recipe.backbone_dropouts:
        noise = LayerNoise.of(checkpoint.config, recipe.adapter.dropout)
    mask = getattr(checkpoint.module, "masked_spec_embed", None)
    if masked and mask is None:
        raise BadRecipe(
            "augment.mask_time_prob: the backbone has no masked_spec_embed, so it was not trained with masks"
        )
    return replace(noise, masked=masked, stretch=recipe.augment.mask_time_length, mask=mask)


class Fit:
    """An adapter in training: the forward of the server with a bank of one slot that takes gradients.

    Args:
        classes: classes, or speakers of the training-only classifier.
        workers: threads that make examples ahead.
        ranks: processes that share the batches.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: AdapterSpec,
        recipe: Recipe,
        batches: Batches,
        classes: int,
        *,
        workers: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self._frozen = backbone
        self._recipe = recipe
        self._batches = batches
        self._ranks = ranks or Ranks()
        self._loader = Loader(batches, workers)
        self.adapter = TrainableAdapter(spec, backbone.spec, backbone.device)
        self.adapter.start(backbone)
        self.backbone = TrainableBackbone(backbone) if recipe.method == "full" else None
        self._noise = _noise_of(recipe, backbone)
        changes_inputs = spec.find(InputPrompt) is not None or self._noise.is_in_front
        self._bypass = self.backbone is not None or changes_inputs
        keep = batches.augmentation.views > 0
        self._front_end = FrontEnd(backbone, self._loader, keep=keep, bypass=self._bypass)
        loss: nn.Module = ClassLoss(recipe.loss)
        self._classes = spec.outputs
        if spec.task_type is TaskType.VERIFICATION:
            loss, self._classes = SpeakerLoss(recipe.loss, spec.outputs, classes), classes
        self._loss = loss.to(backbone.device)
        if recipe.adapter.head_start == "discriminants":
            self._start_head(loss)
        parts = [self.adapter, self._loss, *([] if self.backbone is None else [self.backbone])]
        self._named = {f"{i}.{name}": p for i, part in enumerate(parts) for name, p in part.named_parameters()}
        self._parameters = list(self._named.values())
        options = recipe.optimiser
        self._optimiser = torch.optim.Adam(
            self._parameters, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay
        )

    @torch.no_grad()
    def _start_head(self, loss: nn.Module) -> None:
        """Head, and prototypes of speakers, from the bare backbone's embeddings of the first epochs' examples."""
        bank = Bank.of(self._frozen, [self.adapter.weights().head_alone()])
        embeddings, seen = [], list[Wanted]()
        for number in range(1, HEAD_EPOCHS + 1):
            for states, wanted in self._front_end(list(self._batches.epoch(number))):
                embeddings.append(self._embeddings(self._frozen, states, bank).cpu())
                seen += wanted
        rows, targets = torch.cat(embeddings), torch.tensor([each.targets[0] for each in seen])
        tensors = dict(self.adapter.named_parameters())
        if isinstance(loss, SpeakerLoss):
            name, (weight, bias) = "embedding", discriminants(rows, targets, self.adapter.spec.outputs)
            loss.start_from(class_means(rows @ weight.T + bias, targets, int(targets.max()) + 1))
        else:
            normed, clips = functional.layer_norm(rows, rows.shape[1:]), torch.tensor([each.clip for each in seen])
            name, (weight, bias) = "linear", classifier(normed, targets, clips)
        tensors[f"head__{name}__weight"].copy_(weight)
        tensors[f"head__{name}__bias"].copy_(bias)

    @property
    def steps(self) -> int:
        """Of one epoch."""
        return len(self._batches)

    @property
    def rate(self) -> float:
        """The learning rate as it is now."""
        return float(self._optimiser.param_groups[0]["lr"])

    @property
    def training_only(self) -> int:
        """Parameters that exist in training only: the classifier over speakers."""
        return sum(parameter.numel() for parameter in self._loss.parameters())

    def run_epoch(self, number: int, on_step: Callable[[], None] = lambda: None) -> float:
        """Train one epoch, counted from 1; returns its mean loss. Raises TrainingDiverged."""
        # Dropout's noise is the epoch's own, so that a resumed run equals an uninterrupted one.
        torch.manual_seed((self._recipe.seed * 10_007 + number) * 1_009 + self._ranks.index)
        steps = [self._ranks.share(picks) for picks in self._batches.epoch(number)]
        total = 0.0
        for step, (states, wanted) in enumerate(self._front_end(steps)):
            rate = learning_rate(self._recipe.optimiser, number + step / len(steps), 1 / len(steps))
            for group in self._optimiser.param_groups:
                group["lr"] = rate
            loss = self._step(states, wanted)
            if not math.isfinite(loss):
                raise TrainingDiverged(f"the loss became {loss} in epoch {number}; try a smaller optimiser.lr")
            total += loss
            on_step()
        return total / len(steps)

    def _step(self, states: Tensor, wanted: list[Wanted]) -> float:
        self._optimiser.zero_grad(set_to_none=True)
        value = 0.0
        size = max(1, -(-len(wanted) // self._recipe.optimiser.accumulate))
        told = shares(wanted, self._classes).to(self._frozen.device)
        for piece, rows in zip(torch.split(states, size), torch.split(told, size), strict=True):
            loss: Tensor = self._loss(self.outputs(piece), rows) * (len(rows) / len(wanted))
            loss.backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        value = self._ranks.mean(self._parameters, value, len(wanted))
        limit = self._recipe.optimiser.gradient_norm
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        self._optimiser.step()
        return value

    def outputs(self, states: Tensor) -> Tensor:
        """What the front end gives -> the head's outputs, by the server's forward from there on."""
        backbone = self._frozen if self.backbone is None else self.backbone.backbone()
        bank = Bank.of(backbone, [self.adapter.weights()], self._noise)
        return bank.select([1] * len(states)).outputs(self._embeddings(backbone, states, bank))

    def _embeddings(self, backbone: Backbone, states: Tensor, bank: Bank) -> Tensor:
        """Slot 1's embeddings `[B, E]`."""
        forward = backbone.forward if self._bypass else backbone.encode
        return forward(states, bank, [1] * len(states))

    def snapshot(self) -> Snapshot:
        """A detached copy of what is trained as it is now."""
        tensors = {name: tensor.clone() for name, tensor in self.adapter.weights().to_tensors().items()}
        weights = AdapterWeights.from_tensors(self.adapter.spec, tensors)
        return Snapshot(weights, None if self.backbone is None else self.backbone.snapshot())

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch follows from, beside its number: parameters and the optimiser's moments."""
        named = {f"parameter.{name}": parameter.detach() for name, parameter in self._named.items()}
        return named | moments_of(self._optimiser)

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to a `state`."""
        for name, parameter in self._named.items():
            parameter.copy_(state[f"parameter.{name}"])
        restore_moments(self._optimiser, state)
