"""`ipet train`: recipe and data folder in, bundle out. The report part is opened once, when all is chosen."""

from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.model.loading import load_backbone
from service.model.spec import TaskType
from service.training.cache import ArrayCache
from service.training.checkpoint import CHECKPOINT
from service.training.datasets.load import load_dataset
from service.training.datasets.spoken import with_speech
from service.training.export import planned_manifest
from service.training.norm_stats import with_backbone_norm
from service.training.preparation import prepare
from service.training.ranks import Ranks
from service.training.recipe import Recipe, read_recipe
from service.training.recordings import Recordings
from service.training.run import Run, TrainingResult


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
) -> TrainingResult:
    """Train the adapter of a recipe on a data set and write its bundle.

    A run that was interrupted goes on behind its last whole epoch, from a checkpoint in `out`, and ends as it would
    have ended. With full fine-tuning `out/backbone` is the new backbone, a Hugging Face directory.

    Args:
        recipe: TOML file, or what was read from one.
        data: the data set's own folder.
        out: directory of the bundle; what it holds is replaced at the end.
        report: whether to measure the report part at the end.
        progress: whether to show progress bars.
        workers: processes that make examples ahead; their number changes nothing but the time.
        cache: folder for decoded recordings, and features that come round again.
        fresh: whether to start anew where there is a checkpoint.

    Raises:
        BadRecipe, BadDataset, BadCheckpoint: before the first step; the message says what would be right.
        ValueError, OSError: the backbone cannot be loaded.
        TrainingDiverged: the loss is no longer finite.
    """
    parsed = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    dataset = load_dataset(data, parsed.data)
    ranks = Ranks(device)
    backbone = load_backbone(parsed.backbone, ranks.device, dtype)
    parsed = with_backbone_norm(parsed, backbone.spec)
    arrays = None if cache is None else ArrayCache(cache)
    with TemporaryDirectory() as speech, _progress(progress and ranks.is_main) as bar:
        dataset = with_speech(dataset, parsed.synthesis, parsed.seed, Path(speech))
        labels = () if parsed.task_type is TaskType.VERIFICATION else dataset.labels
        planned = planned_manifest(parsed, backbone.spec, labels)  # refuses what a server would refuse
        task = bar.add_task("read", total=len(dataset.train) + len(dataset.selection), note="")
        prepared = prepare(parsed, dataset, Recordings(cache=arrays), report=report, on_clip=lambda: bar.advance(task))
        bar.update(task, note=f"{len(prepared.recordings.faults)} skipped")
        run = Run(parsed, prepared, backbone, planned, bar, out, ranks, workers, arrays)
        if fresh and ranks.is_main:
            (out / CHECKPOINT).unlink(missing_ok=True)
        ranks.wait()
        result = run.finish(report)
    ranks.close()
    return result


def _progress(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        disable=not shown,
    )
