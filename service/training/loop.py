"""`ipet train`: recipe and data folder in, bundle out. The report part is opened once, when all is chosen."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.audio.features import InputSpec
from service.model.adapter import AdapterWeights
from service.model.backbone import Backbone
from service.model.loading import load_backbone
from service.model.spec import ModelType, TaskType
from service.registry.manifest import Manifest
from service.training.batches import Batches, find_noises
from service.training.datasets.dataset import Clip, Dataset
from service.training.datasets.load import check_classes, load_dataset
from service.training.evaluate import report_figures
from service.training.export import (
    Export,
    adapter_spec,
    as_stored,
    count_parameters,
    export_bundle,
    manifest_name,
    planned_manifest,
)
from service.training.fit import Fit
from service.training.inference import Inference
from service.training.recipe import Recipe, read_recipe
from service.training.recordings import Recordings
from service.training.report import CardFacts, EpochFigures, model_card
from service.training.selection import ClassJudge, Judge, TrialJudge, split_noises


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished training run."""

    manifest: Manifest
    out: Path
    epochs: tuple[EpochFigures, ...]
    chosen_epoch: int
    parameters: dict[str, int]
    metrics: dict[str, Any]
    skipped: int  # files that could not be read


def train(
    recipe: Path,
    data: Path,
    out: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    report: bool = True,
    progress: bool = True,
) -> TrainingResult:
    """Train the adapter of a recipe on a data set and write its bundle.

    Args:
        recipe: TOML file.
        data: the data set's own folder.
        out: directory of the bundle; what it holds is replaced at the end.
        report: whether to measure the report part at the end.
        progress: whether to show progress bars.

    Raises:
        BadRecipe, BadDataset: before the first step; the message says what would be right.
        ValueError, OSError: the backbone cannot be loaded.
        TrainingDiverged: the loss is no longer finite.
    """
    parsed = read_recipe(recipe)
    dataset = load_dataset(data, parsed.data)
    backbone = load_backbone(parsed.backbone, device, dtype)
    with _progress(progress) as bar:
        return _Run(parsed, dataset, backbone, bar).finish(out, report)


class _Run:
    """One training run, from lists of files to a bundle."""

    def __init__(self, recipe: Recipe, dataset: Dataset, backbone: Backbone, bar: Progress) -> None:
        self._started = time.monotonic()
        self._recipe = recipe
        self._backbone = backbone
        self._bar = bar
        self._recordings = Recordings()
        self._verification = recipe.task_type is TaskType.VERIFICATION
        planned = planned_manifest(recipe, backbone.spec, self._labels(dataset))
        self._input: InputSpec = planned.input_spec()
        self._spec = adapter_spec(recipe, len(dataset.labels))
        self._dataset = self._read(dataset)
        noises = find_noises(dataset.root, recipe.augment.noise_files, dataset.reserved)
        noises = tuple(self._recordings.readable(noises))
        self._noises, kept = split_noises(noises) if self._verification else (noises, ())
        self._judge: Judge
        if self._verification:
            self._judge = TrialJudge(self._dataset.selection, kept, recipe.seed, self._recordings)
        else:
            self._judge = ClassJudge(self._dataset.selection, dataset.labels, recipe.activation, self._recordings)

    def finish(self, out: Path, report: bool) -> TrainingResult:
        fit, epochs, chosen, best = self._choose()
        best = as_stored(best, self._recipe.dtype)
        settled = self._judge.settle(self._inference(best), self._recipe.calibrate)
        metrics: dict[str, Any] = {"selection": settled.pop("metrics")}
        if self._recipe.refit:
            fit = self._fit(self._dataset.train + self._dataset.selection)
            self._run_epochs(fit, chosen, "refit")
            best = as_stored(fit.snapshot(), self._recipe.dtype)
        counts = count_parameters(self._spec, self._backbone.spec, fit.training_only)

        def write() -> Manifest:
            training = {"recipe": self._recipe.model_dump(mode="json"), "epoch": chosen, "parameters": counts}
            facts = CardFacts(
                backbone=manifest_name(self._recipe),
                fingerprint=self._backbone.spec.fingerprint,
                parameters=counts,
                counts=self._counts(metrics),
                epochs=epochs,
                figure=self._judge.figure,
                chosen_epoch=chosen,
                seconds=time.monotonic() - self._started,
                faults={path.name: reason for path, reason in self._recordings.faults.items()},
                metrics=metrics,
                settled=settled,
            )
            export = Export(best, settled, metrics, training)
            card = model_card(self._recipe, facts)
            return export_bundle(out, self._recipe, self._backbone.spec, self._labels(self._dataset), export, card)

        manifest = write()  # kept should the report part turn out to be unreadable
        if report:
            metrics["report"] = report_figures(
                self._inference(best), manifest, self._dataset.report(), self._recordings
            )
            manifest = write()
        skipped = len(self._recordings.faults)
        return TrainingResult(manifest, out, tuple(epochs), chosen, counts, metrics, skipped)

    def _choose(self) -> tuple[Fit, list[EpochFigures], int, AdapterWeights]:
        """Train on the training part and keep the epoch that the selection part likes best."""
        fit = self._fit(self._dataset.train)
        figures: list[EpochFigures] = []
        best, chosen, weights = (float("-inf"), float("-inf")), 0, fit.snapshot()

        def judge(epoch: int, loss: float) -> float:
            nonlocal best, chosen, weights
            snapshot = fit.snapshot()
            figure = self._judge.judge(self._inference(snapshot))
            if figure >= best:
                best, chosen, weights = figure, epoch, snapshot
            figures.append(EpochFigures(epoch, loss, figure[0]))
            return figure[0]

        self._run_epochs(fit, self._recipe.optimiser.epochs, "train", judge)
        return fit, figures, chosen, weights

    def _fit(self, clips: tuple[Clip, ...]) -> Fit:
        recipe = self._recipe
        batches = Batches(
            clips=clips,
            recordings=self._recordings,
            augmentation=recipe.augment,
            noises=self._noises,
            input=self._input,
            is_ast=self._backbone.spec.model_type is ModelType.AST,
            size=recipe.optimiser.batch,
            seed=recipe.seed,
        )
        self._steps = len(batches)
        return Fit(self._backbone, self._spec, recipe, batches, 1 + max(clip.target for clip in clips))

    def _run_epochs(
        self, fit: Fit, epochs: int, title: str, judge: Callable[[int, float], float] | None = None
    ) -> None:
        task = self._bar.add_task(title, total=epochs * self._steps, note="")
        every = self._recipe.optimiser.judge_every
        for epoch in range(1, epochs + 1):
            loss = fit.run_epoch(epoch, lambda: self._bar.advance(task))
            note = f"epoch {epoch}/{epochs} loss {loss:.3f}"
            if judge is not None and (epoch % every == 0 or epoch == epochs):
                note += f" selection {self._judge.figure} {judge(epoch, loss):.3f}"
            self._bar.update(task, note=note)

    def _inference(self, weights: AdapterWeights) -> Inference:
        return Inference(self._backbone, weights, self._input)

    def _read(self, dataset: Dataset) -> Dataset:
        """Decode training and selection parts; leave out what cannot be read. Raises BadDataset."""
        paths = [clip.path for clip in dataset.train + dataset.selection]
        task = self._bar.add_task("read", total=len(paths), note="")
        readable = set()
        for path in self._recordings.readable(paths):
            readable.add(path)
            self._bar.advance(task)
        self._bar.update(task, completed=len(paths), note=f"{len(self._recordings.faults)} skipped")
        train, selection = (
            tuple(clip for clip in part if clip.path in readable) for part in (dataset.train, dataset.selection)
        )
        check_classes(dataset, train, selection)
        return replace(dataset, train=train, selection=selection)

    def _labels(self, dataset: Dataset) -> tuple[str, ...]:
        return () if self._recipe.task_type is TaskType.VERIFICATION else dataset.labels

    def _counts(self, metrics: dict[str, Any]) -> dict[str, int]:
        dataset = self._dataset
        counts = {
            "training clips": len(dataset.train),
            "selection clips": len(dataset.selection),
            "speakers" if self._verification else "classes": len(dataset.labels),
        }
        report = metrics.get("report", {})
        if "clips" in report:
            counts["report clips"] = report["clips"]
        return counts


def _progress(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        disable=not shown,
    )
