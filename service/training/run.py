"""One training run, from readable clips to a bundle: epochs, selection, refit, report; resumed where it stopped."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from service.model.backbone import Backbone
from service.model.trainable import TrainableBackbone
from service.registry.manifest import Manifest
from service.scoring.bootstrap import REPLICATES
from service.training.batches import Batches
from service.training.cache import ArrayCache
from service.training.checkpoint import CHECKPOINT, load_progress, save_progress
from service.training.checkpoint import Progress as RunProgress
from service.training.datasets.dataset import Clip
from service.training.datasets.spoken import SYNTHESISED
from service.training.export import (
    BACKBONE_FOLDER,
    Export,
    adapter_spec,
    as_stored,
    count_parameters,
    export_bundle,
    original_name,
)
from service.training.figures import Measured, measure
from service.training.fit import Fit
from service.training.inference import Inference
from service.training.outcome import leave_figures, leave_pictures
from service.training.preparation import Prepared
from service.training.ranks import Ranks
from service.training.recipe import Recipe
from service.training.report import CardFacts, EpochFigures, model_card
from service.training.selection import ClassJudge, Judge, TrialJudge
from service.training.snapshot import Snapshot


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


class Run:
    """One training run, from readable clips to a bundle."""

    def __init__(
        self,
        recipe: Recipe,
        prepared: Prepared,
        backbone: Backbone,
        planned: Manifest,
        bar: Progress,
        out: Path,
        ranks: Ranks,
        workers: int,
        cache: ArrayCache | None,
    ) -> None:
        self._started = time.monotonic()
        self._recipe = recipe
        self._prepared = prepared
        self._dataset = prepared.dataset
        self._recordings = prepared.recordings
        self._backbone = backbone
        self._bar = bar
        self._out = out
        self._ranks = ranks
        self._workers = workers
        self._cache = cache
        self._trainable: TrainableBackbone | None = None
        self._labels = planned.labels or ()
        self._input = planned.input_spec()
        self._spec = adapter_spec(recipe, len(self._dataset.labels))
        self._judge: Judge
        if self._dataset.verification:
            kept = prepared.kept_noises
            rate = recipe.calibration.false_accept_rate
            self._judge = TrialJudge(self._dataset.selection, kept, recipe.seed, self._recordings, rate)
        else:
            self._judge = ClassJudge(self._dataset.selection, self._labels, recipe.activation, self._recordings)

    def finish(self, report: bool) -> TrainingResult:
        progress = load_progress(self._out / CHECKPOINT, self._identity())
        fit = self._fit(self._dataset.train)
        counts = count_parameters(
            self._spec, self._backbone.spec, fit.training_only, full=self._recipe.method == "full"
        )
        if not self._bar.disable:
            self._bar.console.print(trainable_line(self._recipe.method, counts))
        best = self._choose(fit, progress)
        settled = self._judge.settle(self._inference(best), self._recipe.calibrate)
        metrics: dict[str, Any] = {"selection": settled.pop("metrics")}
        if self._recipe.refit:
            best = self._refit(progress)
        manifest = self._write(best, settled, metrics, counts, progress)  # kept should the report part be unreadable
        if report:
            inference, opened = self._inference(best), self._dataset.report()
            measured = measure(inference, manifest, opened, self._recordings, REPLICATES)
            metrics["report"] = dict(measured.figures)
            manifest = self._write(best, settled, metrics, counts, progress, measured)
        if self._ranks.is_main:
            (self._out / CHECKPOINT).unlink(missing_ok=True)
        skipped = len(self._recordings.faults)
        return TrainingResult(manifest, self._out, tuple(progress.figures), progress.chosen, counts, metrics, skipped)

    def _choose(self, fit: Fit, progress: RunProgress) -> Snapshot:
        """Train on the training part and keep the epoch that the selection part likes best."""

        def judge(epoch: int, loss: float) -> float:
            snapshot = fit.snapshot()
            figure = self._judge.judge(self._inference(snapshot))
            if figure >= progress.best or not progress.chosen:
                progress.best, progress.chosen, progress.best_state = figure, epoch, snapshot.to_tensors()
            progress.figures.append(EpochFigures(epoch, loss, figure[0]))
            return figure[0]

        if progress.stage == "train":
            self._run_epochs(fit, self._recipe.optimiser.epochs, progress, judge)
            progress.chosen = self._ranks.agree(progress.chosen)
        best = Snapshot.from_tensors(self._spec, progress.best_state)
        return self._as_stored(best)

    def _refit(self, progress: RunProgress) -> Snapshot:
        """Train anew on training and selection parts together, for the chosen number of epochs."""
        if progress.stage == "train":
            progress.stage, progress.epoch, progress.fit = "refit", 0, {}
        fit = self._fit(self._dataset.train + self._dataset.selection)
        self._run_epochs(fit, progress.chosen, progress)
        return self._as_stored(fit.snapshot())

    def _fit(self, clips: tuple[Clip, ...]) -> Fit:
        recipe = self._recipe
        batches = Batches(
            clips=clips,
            recordings=self._recordings,
            augmentation=recipe.augment,
            noises=self._prepared.noises,
            input=self._input,
            features=self._backbone.features,
            size=recipe.optimiser.batch,
            seed=recipe.seed,
            corruption=self._prepared.corruption,
            cache=self._cache,
        )
        self._steps = len(batches)
        classes = 1 + max(target for clip in clips for target in clip.targets)
        fit = Fit(self._backbone, self._spec, recipe, batches, classes, workers=self._workers, ranks=self._ranks)
        self._trainable = fit.backbone
        return fit

    def _run_epochs(
        self, fit: Fit, epochs: int, progress: RunProgress, judge: Callable[[int, float], float] | None = None
    ) -> None:
        """Train the epochs that `progress` lacks, with a checkpoint behind each."""
        if progress.epoch:
            fit.restore(progress.fit)
        done = progress.epoch * self._steps
        task = self._bar.add_task(progress.stage, total=epochs * self._steps, completed=done, note="")
        every = self._recipe.optimiser.judge_every
        for epoch in range(progress.epoch + 1, epochs + 1):
            loss = fit.run_epoch(epoch, lambda: self._bar.advance(task))
            note = f"epoch {epoch}/{epochs} loss {loss:.3f}"
            if judge is not None and (epoch % every == 0 or epoch == epochs):
                note += f" selection {self._judge.figure} {judge(epoch, loss):.3f}"
            self._bar.update(task, note=note)
            progress.epoch, progress.fit = epoch, fit.state()
            if self._ranks.is_main:
                save_progress(self._out / CHECKPOINT, self._identity(), progress)

    def _identity(self) -> str:
        """Digest of what decides a run."""
        clips = [[clip.path.name, clip.group, *clip.targets] for clip in self._dataset.train + self._dataset.selection]
        told = [self._recipe.model_dump(mode="json"), self._backbone.spec.fingerprint, clips]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def _as_stored(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot as a server will read it from the bundle."""
        return replace(snapshot, weights=as_stored(snapshot.weights, self._recipe.dtype))

    def _inference(self, snapshot: Snapshot) -> Inference:
        backbone = self._backbone
        if snapshot.backbone is not None and self._trainable is not None:
            backbone = self._trainable.frozen(snapshot.backbone)
        return Inference(backbone, snapshot.weights, self._input)

    def _write(
        self,
        best: Snapshot,
        settled: dict[str, Any],
        metrics: dict[str, Any],
        counts: dict[str, int],
        progress: RunProgress,
        report: Measured | None = None,
    ) -> Manifest:
        """Write the bundle, and before it what stands beside: the backbone where that was trained, the pictures."""
        spec = self._backbone.spec
        if best.backbone is not None and self._trainable is not None:
            spec = replace(spec, fingerprint=self._trainable.fingerprint(best.backbone))
            if self._ranks.is_main:
                self._trainable.save(best.backbone, self._out / BACKBONE_FOLDER)
        chosen, recipe = progress.chosen, self._recipe
        seconds = time.monotonic() - self._started
        facts = CardFacts(
            backbone=original_name(recipe),
            fingerprint=spec.fingerprint,
            parameters=counts,
            counts=self._counts(metrics),
            epochs=progress.figures,
            figure=self._judge.figure,
            chosen_epoch=chosen,
            seconds=seconds,
            faults={path.name: reason for path, reason in self._recordings.faults.items()},
            metrics=metrics,
            settled=settled,
            pictures=self._leave_figures(progress, report or Measured({}), seconds),
        )
        training = {"recipe": recipe.model_dump(mode="json"), "epoch": chosen, "parameters": counts}
        export = Export(best.weights, settled, metrics, training)
        out = self._out if self._ranks.is_main else None
        return export_bundle(out, recipe, spec, self._labels, export, model_card(recipe, facts))

    def _leave_figures(self, progress: RunProgress, report: Measured, seconds: float) -> tuple[str, ...] | None:
        """Write what a card shows and a comparison reads; names of the pictures, None without matplotlib."""
        if not self._ranks.is_main:
            return ()
        self._out.mkdir(parents=True, exist_ok=True)
        told = (self._out, progress.figures, self._judge.figure, progress.chosen, report)
        leave_figures(*told, seconds)
        return leave_pictures(*told)

    def _counts(self, metrics: dict[str, Any]) -> dict[str, int]:
        dataset = self._dataset
        spoken = sum(clip.group == SYNTHESISED for clip in dataset.train)
        counts = {
            "training clips": len(dataset.train),
            **({f"of them {SYNTHESISED}": spoken} if spoken else {}),
            "selection clips": len(dataset.selection),
            "speakers" if dataset.verification else "classes": len(dataset.labels),
        }
        report = metrics.get("report", {})
        if "clips" in report:
            counts["report clips"] = report["clips"]
        return counts


def trainable_line(method: str, counts: dict[str, int]) -> str:
    """What is trained, in one line."""
    parts = [f"{name} {counts[name]:,}" for name in ("prompt", "adapter", "head") if counts[name]]
    if method == "full":
        parts.insert(0, f"backbone {counts['backbone']:,}")
    if counts["training_only"]:
        parts.append(f"in training only {counts['training_only']:,}")
    return f"{method}: {counts['trainable']:,} trainable parameters ({', '.join(parts)})"
