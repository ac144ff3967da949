"""`ipet train`: recipe and data folder in, bundle out. The report part is opened once, when all is chosen."""

import hashlib
import json
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from service.model.loading import load_backbone
from service.model.precision import pick_device, pick_dtype
from service.model.spec import TaskType
from service.training.cache import ArrayCache
from service.training.datasets.dataset import Dataset
from service.training.datasets.load import load_dataset
from service.training.export import planned_manifest
from service.training.norm_stats import with_backbone_norm
from service.training.outcome import BOARD_FOLDER, Outcome, clear, finished
from service.training.preparation import prepare
from service.training.ranks import Ranks
from service.training.recipe import BadRecipe, Recipe, read_recipe
from service.training.recordings import Recordings
from service.training.run import Means, Run
from service.training.tables import progress_bar


def train(
    recipe: Path | Recipe,
    data: Path,
    out: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    report: bool = True,
    progress: bool = True,
    workers: int = 0,
    cache: Path | None = None,
    fresh: bool = False,
    tensorboard: bool = False,
) -> Outcome:
    """Train the adapter of a recipe on a data set and write its bundle.

    A run that was interrupted goes on behind its last whole epoch, from a checkpoint in `out`, and ends as it would
    have ended; one that is finished is not run again, but for a report part that it left out. With full fine-tuning
    `out/backbone` is the new backbone, a Hugging Face directory.

    Args:
        recipe: TOML file, or what was read from one.
        data: the data set's own folder.
        out: directory of the bundle.
        report: whether to measure the report part at the end.
        progress: whether to show progress bars, or lines where there is no terminal.
        workers: threads that make examples ahead; their number changes nothing but the time.
        cache: folder for decoded recordings, and features that come round again.
        tensorboard: whether to write events for it to `out/tensorboard`.
        fresh: whether to start anew where there is a checkpoint or a finished run, of another recipe too.

    Raises:
        BadRecipe, BadDataset, BadCheckpoint: before the first step; the message says what would be right.
        ValueError, OSError: the backbone cannot be loaded.
        TrainingDiverged: the loss is no longer finite.
    """
    writer = _board_writer() if tensorboard else None
    parsed = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    dataset = load_dataset(data, parsed.data)
    if parsed.augment.background:
        dataset = dataset.with_background()
    ranks = Ranks(device)
    backbone = load_backbone(parsed.backbone, ranks.device, training_dtype(dtype, ranks.device))
    parsed = with_backbone_norm(parsed, backbone.spec)
    identity = run_identity(parsed, backbone.spec.fingerprint, dataset)
    if not fresh and (outcome := finished(out, identity, report)) is not None:
        return replace(outcome, again=True)
    arrays = None if cache is None else ArrayCache(cache)
    with progress_bar(progress and ranks.is_main) as bar:
        labels = () if parsed.task_type is TaskType.VERIFICATION else dataset.labels
        planned = planned_manifest(parsed, backbone.spec, labels)  # refuses what a server would refuse
        task = bar.add_task("read", total=len(dataset.train) + len(dataset.selection), note="")
        prepared = prepare(parsed, dataset, Recordings(cache=arrays), report=report, on_clip=lambda: bar.advance(task))
        bar.update(task, note=f"{len(prepared.recordings.faults)} skipped")
        run = Run(prepared, backbone, planned, out, identity, Means(bar, ranks, workers, arrays))
        if fresh and ranks.is_main:
            clear(out)
        ranks.wait()
        with nullcontext() if writer is None or not ranks.is_main else writer(str(out / BOARD_FOLDER)) as board:
            result = run.finish(report, board)
    ranks.close()
    return result


def _board_writer() -> Any:
    """What writes events for TensorBoard. Raises BadRecipe where nothing that does is installed."""
    for module in ("torch.utils.tensorboard", "tensorboardX"):
        try:
            return import_module(module).SummaryWriter
        except ImportError:
            continue
    raise BadRecipe("--tensorboard: nothing writes for it; pip install tensorboard, or tensorboardX")


def run_identity(recipe: Recipe, fingerprint: str, dataset: Dataset) -> str:
    """Digest of what decides a run: recipe, backbone, and the clips with their labels and parts, wherever they lie."""
    clips = [[*dataset.place(clip.span), clip.group, *clip.targets] for clip in dataset.train + dataset.selection]
    told = [recipe.model_dump(mode="json"), fingerprint, dataset.labels, len(dataset.train), clips]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def training_dtype(dtype: str, device: str) -> str:
    """The backbone's dtype; `auto` is never float16, in which small gradients vanish without scaling the loss.

    Raises BadRecipe: float16 was asked for.
    """
    if dtype == "float16":
        raise BadRecipe("--dtype float16: small gradients vanish in it; train in bfloat16 or float32")
    return "float32" if pick_dtype(dtype, pick_device(device)) is torch.float16 else dtype
