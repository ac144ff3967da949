"""Optimises one adapter on a frozen backbone, epoch by epoch. Knows no files and no report part."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from service.model.adapter import AdapterWeights, TrainableAdapter
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.spec import AdapterSpec, TaskType
from service.training.batches import Batches, Pick
from service.training.frontend import FrontEnd
from service.training.headstart import class_means, discriminants
from service.training.losses import ClassLoss, SpeakerLoss, Targets
from service.training.recipe import Optimiser, Recipe

HEAD_EPOCHS = 3  # epochs of examples that a head's start is computed from


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


def learning_rate(optimiser: Optimiser, epoch: float) -> float:
    """Rate of an epoch, counted from 1: the paper's staircase, or half a cosine over all epochs."""
    if optimiser.schedule == "paper":
        steps = min(max(math.floor(epoch) - optimiser.decay_after, 0), optimiser.decay_epochs)
        return optimiser.lr * optimiser.decay**steps
    done = (epoch - 1) / optimiser.epochs
    return optimiser.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class Fit:
    """An adapter in training: the forward of the server with a bank of one slot that takes gradients.

    Args:
        classes: classes, or speakers of the training-only classifier.
    """

    def __init__(self, backbone: Backbone, spec: AdapterSpec, recipe: Recipe, batches: Batches, classes: int) -> None:
        torch.manual_seed(recipe.seed)
        self._backbone = backbone
        self._recipe = recipe
        self._batches = batches
        self._front_end = FrontEnd(backbone, batches, input_prompts=spec.input_prompt > 0)
        self.adapter = TrainableAdapter(spec, backbone.spec, backbone.device)
        loss: nn.Module = ClassLoss(recipe.loss)
        if spec.task_type is TaskType.VERIFICATION:
            loss = SpeakerLoss(recipe.loss, spec.outputs, classes)
        self._loss = loss.to(backbone.device)
        if isinstance(loss, SpeakerLoss) and recipe.adapter.head_start == "discriminants":
            self._start_head(loss)
        self._parameters = [*self.adapter.parameters(), *self._loss.parameters()]
        options = recipe.optimiser
        self._optimiser = torch.optim.Adam(
            self._parameters, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay
        )

    @torch.no_grad()
    def _start_head(self, loss: SpeakerLoss) -> None:
        """Head and prototypes from the bare backbone's embeddings of the first epochs' examples."""
        bank = Bank.of(self._backbone, [self.adapter.weights().head_alone()])
        embeddings, speakers = [], []
        for number in range(1, max(HEAD_EPOCHS, 1) + 1):
            for picks in self._batches.epoch(number):
                states, wanted = self._front_end(picks)
                embeddings.append(self._embeddings(states, bank).cpu())
                speakers += [each.targets[0] for each in wanted]
        rows, targets = torch.cat(embeddings), torch.tensor(speakers)
        weight, bias = discriminants(rows, targets, self.adapter.spec.outputs)
        tensors = dict(self.adapter.named_parameters())
        tensors["head__embedding__weight"].copy_(weight)
        tensors["head__embedding__bias"].copy_(bias)
        loss.start_from(class_means(rows @ weight.T + bias, targets, int(targets.max()) + 1))

    @property
    def training_only(self) -> int:
        """Parameters that exist in training only: the classifier over speakers."""
        return sum(parameter.numel() for parameter in self._loss.parameters())

    def run_epoch(self, number: int, on_step: Callable[[], None] = lambda: None) -> float:
        """Train one epoch, counted from 1; returns its mean loss. Raises TrainingDiverged."""
        total = 0.0
        for step, picks in enumerate(self._batches.epoch(number)):
            rate = learning_rate(self._recipe.optimiser, number + step / len(self._batches))
            for group in self._optimiser.param_groups:
                group["lr"] = rate
            loss = self._step(picks)
            if not math.isfinite(loss):
                raise TrainingDiverged(f"the loss became {loss} in epoch {number}; try a smaller optimiser.lr")
            total += loss
            on_step()
        return total / len(self._batches)

    def _step(self, picks: Sequence[Pick]) -> float:
        self._optimiser.zero_grad(set_to_none=True)
        states, wanted = self._front_end(picks)
        loss: Tensor = self._loss(self.outputs(states), Targets.of(wanted, self._backbone.device))
        loss.backward()  # type: ignore[no-untyped-call]
        limit = self._recipe.optimiser.gradient_norm
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        self._optimiser.step()
        return float(loss.detach())

    def outputs(self, states: Tensor) -> Tensor:
        """What the front end's part of a step gave -> the head's outputs; `Backbone.forward` from there on."""
        bank = Bank.of(self._backbone, [self.adapter.weights()], dropout=self._recipe.adapter.dropout)
        return bank.head(1)(self._embeddings(states, bank))

    def _embeddings(self, states: Tensor, bank: Bank) -> Tensor:
        """Slot 1's embeddings `[B, E]`; an input prompt goes in before the front end."""
        run = self._backbone.forward if self.adapter.spec.input_prompt else self._backbone.encode
        return run(states, bank, [1] * len(states))

    def snapshot(self) -> AdapterWeights:
        """A detached copy of the adapter as it is now."""
        tensors = {name: tensor.clone() for name, tensor in self.adapter.weights().to_tensors().items()}
        return AdapterWeights.from_tensors(self.adapter.spec, tensors)
