"""Where an interrupted training run goes on: one file, written whole or not at all after every epoch.

Tensors are stored as safetensors, everything else as JSON in its header. Knows neither models nor data.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from service.training.report import EpochFigures

CHECKPOINT = "checkpoint.safetensors"
Stage = Literal["train", "refit"]


class BadCheckpoint(ValueError):
    """A checkpoint of another run; the message says what to do."""


@dataclass(slots=True)
class Progress:
    """How far a run is.

    Args:
        stage: `refit` trains anew on training and selection parts together.
        epoch: last finished epoch of the stage.
        figures: of the epochs that were judged.
        chosen: epoch that was judged best, 0 before the first.
        best: its figures.
        best_state: its tensors.
        fit: tensors of the adapter in training and of its optimiser.
    """

    stage: Stage = "train"
    epoch: int = 0
    figures: list[EpochFigures] = field(default_factory=list)
    chosen: int = 0
    best: tuple[float, float] = (float("-inf"), float("-inf"))
    best_state: dict[str, Tensor] = field(default_factory=dict)
    fit: dict[str, Tensor] = field(default_factory=dict)


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


def save_progress(path: Path, run: str, progress: Progress) -> None:
    """Replace the checkpoint of `run` (what decides it, as a digest). Raises OSError."""
    tensors = {f"fit.{name}": tensor for name, tensor in progress.fit.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in progress.best_state.items()}
    told: dict[str, Any] = {
        "run": run,
        "stage": progress.stage,
        "epoch": progress.epoch,
        "figures": [asdict(each) for each in progress.figures],
        "chosen": progress.chosen,
        "best": progress.best if progress.chosen else None,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # Copies: the file format wants every tensor in memory of its own.
    save_file(
        {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()},
        partial,
        metadata={"progress": json.dumps(told)},
    )
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_progress(path: Path, run: str) -> Progress:
    """The progress of `run`; a fresh one where there is no checkpoint. Raises BadCheckpoint."""
    if not path.exists():
        return Progress()
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
    fresh = Progress()
    return Progress(
        stage=told["stage"],
        epoch=told["epoch"],
        figures=[EpochFigures(**each) for each in told["figures"]],
        chosen=told["chosen"],
        best=fresh.best if told["best"] is None else (told["best"][0], told["best"][1]),
        best_state=parts["best"],
        fit=parts["fit"],
    )
