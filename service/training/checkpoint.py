"""Where an interrupted training run goes on: one file, written whole or not at all after every epoch.

Tensors are stored as safetensors, everything else as JSON in its header, but for the epochs that have ended: those
stand in a file of their own, a line of JSON each.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

CHECKPOINT = "checkpoint.safetensors"
EPOCHS_FILE = "epochs.jsonl"


@dataclass(frozen=True, slots=True)
class EpochFigures:
    """One epoch of training."""

    epoch: int
    loss: float  # mean over its steps
    figure: float | None  # on the selection part, larger is better; None where nobody looked
    stage: str = "train"
    rate: float = 0.0  # learning rate of its last step
    seconds: float = 0.0


class BadCheckpoint(ValueError):
    """A checkpoint of another run; the message says what to do."""


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    run: str  # what decides it, as a digest
    stage: str = "train"  # `train`, one of the folds, or `refit`, which trains anew on more
    epoch: int = 0  # last finished epoch of the stage
    epochs: list[EpochFigures] = field(default_factory=list)  # every one that has ended
    chosen: int = 0  # epoch that was judged best, 0 before the first
    best: tuple[float, float] = (float("-inf"), float("-inf"))  # its figures
    best_state: dict[str, Tensor] = field(default_factory=dict)  # its tensors; by folds, the answers of all epochs
    fit: dict[str, Tensor] = field(default_factory=dict)  # tensors of the adapter in training and of its optimiser

    @property
    def judged(self) -> list[EpochFigures]:
        """The epochs that were looked at, each once: the mean of the folds."""
        looks: dict[int, list[tuple[float, float]]] = {}
        for each in self.epochs:
            if each.figure is not None:
                looks.setdefault(each.epoch, []).append((each.loss, each.figure))
        means = {epoch: map(fmean, zip(*found, strict=True)) for epoch, found in looks.items()}
        return [EpochFigures(epoch, loss, figure) for epoch, (loss, figure) in means.items()]

    @property
    def vain(self) -> int:
        """Looks at the selection part since the best one."""
        return sum(each.epoch > self.chosen for each in self.judged)


def moments_of(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser has gathered, as `optimiser.<parameter>.<moment>`."""
    moments = optimiser.state_dict()["state"]
    return {f"optimiser.{index}.{name}": tensor for index, each in moments.items() for name, tensor in each.items()}


def restore_moments(optimiser: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """The inverse of `moments_of`; other tensors are passed over."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith("optimiser."):
            _, index, moment = name.split(".", 2)
            moments.setdefault(int(index), {})[moment] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})


def save_progress(path: Path, progress: Progress) -> None:
    """Replace the checkpoint, and before it the epochs beside it. Raises OSError."""
    tensors = {f"fit.{name}": tensor for name, tensor in progress.fit.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in progress.best_state.items()}
    told: dict[str, Any] = {
        "run": progress.run,
        "stage": progress.stage,
        "epoch": progress.epoch,
        "epochs": len(progress.epochs),
        "chosen": progress.chosen,
        "best": progress.best if progress.chosen else None,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    if progress.epochs:
        lines = [json.dumps(asdict(each)) + "\n" for each in progress.epochs]
        partial.write_text("".join(lines), encoding="utf-8")
        os.replace(partial, path.with_name(EPOCHS_FILE))
    # Copies: the file format wants every tensor in memory of its own.
    save_file(
        {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()},
        partial,
        metadata={"progress": json.dumps(told)},
    )
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_epochs(directory: Path) -> list[EpochFigures]:
    """The epochs of a run that have ended. Raises OSError."""
    lines = (directory / EPOCHS_FILE).read_text(encoding="utf-8").splitlines()
    return [EpochFigures(**json.loads(line)) for line in lines]


def load_progress(path: Path, run: str, stage: str = "train") -> Progress:
    """The progress of `run`; a fresh one, of its first `stage`, where there is no checkpoint. Raises BadCheckpoint."""
    fresh = Progress(run, stage)
    if not path.exists():
        return fresh
    with safe_open(path, framework="pt") as file:
        told: Mapping[str, Any] = json.loads((file.metadata() or {}).get("progress", "{}"))
        if told.get("run") != run:
            raise BadCheckpoint(
                f"{path} is of another run (recipe, data or backbone differ); start afresh (--fresh) or write elsewhere"
            )
        parts: dict[str, dict[str, Tensor]] = {"fit": {}, "best": {}}
        for name in file.keys():  # noqa: SIM118, not a mapping
            part, rest = name.split(".", 1)
            parts[part][rest] = file.get_tensor(name)
    return Progress(
        run,
        stage=told["stage"],
        epoch=told["epoch"],
        epochs=read_epochs(path.parent)[: told["epochs"]] if told["epochs"] else [],
        chosen=told["chosen"],
        best=fresh.best if told["best"] is None else (told["best"][0], told["best"][1]),
        best_state=parts["best"],
        fit=parts["fit"],
    )
