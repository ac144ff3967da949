"""One training run, from readable clips to a bundle: epochs, selection, refit, report; resumed where it stopped."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress as Bar

from service.model.backbone import Backbone
from service.model.trainable import TrainableBackbone
from service.registry.bundle import write_bundle
from service.registry.manifest import Manifest, build_manifest
from service.scoring.bootstrap import REPLICATES
from service.timeline.parameters import BACKGROUND
from service.training.answers import answers_of
from service.training.batches import Batches
from service.training.cache import ArrayCache
from service.training.card import CardFacts, model_card, split_sentences, trainable_line
from service.training.checkpoint import CHECKPOINT, EpochFigures, load_progress, save_progress
from service.training.datasets.dataset import Clip, Report
from service.training.export import BACKBONE_FOLDER, adapter_spec, as_stored, count_parameters, manifest_fields
from service.training.figures import Measured, measure
from service.training.fit import Fit, Snapshot
from service.training.inference import Inference
from service.training.outcome import Outcome, leave_figures, leave_pictures
from service.training.preparation import Prepared
from service.training.ranks import Ranks
from service.training.selection import Judge, deal, make_judge, refit_halves

Look = Callable[[Fit, int], float]  # judges an epoch


@dataclass(frozen=True, slots=True)
class Means:
    """What a run is computed with, none of which changes what comes out."""

    bar: Bar
    ranks: Ranks
    workers: int = 0  # threads that make examples ahead
    cache: ArrayCache | None = None  # of decoded recordings, and of features that come round again


class Run:
    """One training run.

    Args:
        planned: the bundle's manifest but for what training finds.
        identity: digest of what decides the run.
    """

    def __init__(
        self, prepared: Prepared, backbone: Backbone, planned: Manifest, out: Path, identity: str, means: Means
    ) -> None:
        self._started = time.monotonic()
        self._prepared, self._backbone, self._out, self._means = prepared, backbone, out, means
        self._recipe, self._dataset, self._identity = prepared.recipe, prepared.dataset, identity
        self._labels, self._input = planned.labels or (), planned.input_spec()
        self._spec = adapter_spec(self._recipe, len(self._dataset.labels))
        self._trainable: TrainableBackbone | None = None
        self._parameters: dict[str, int] = {}
        self._folds = deal(self._recipe, self._dataset)
        self._learnt, self._kept = self._dataset.train, self._dataset.selection
        if self._folds:
            self._learnt, self._kept = self._learnt + self._kept, tuple(c for _, held in self._folds for c in held)
        elif self._recipe.refit:
            more, self._kept = refit_halves(self._dataset)
            self._learnt += more
        first = [f"fold {number + 1}" for number in range(len(self._folds))] or ["train"]
        self._stages = first + (["refit"] if len(self._learnt) > len(self._dataset.train) else [])
        self._judge = make_judge(prepared, self._kept, self._labels)

    def finish(self, report: bool, board: Any = None) -> Outcome:
        """Go on from the checkpoint in `out`, if there is one, and write the bundle.

        Args:
            board: a writer of TensorBoard's, which is told every epoch.
        """
        self._board = board
        faults, checkpoint = self._prepared.recordings.faults, self._out / CHECKPOINT
        self._progress = load_progress(checkpoint, f"{self._identity}, {len(faults)} unreadable", self._stages[0])
        self._started -= sum(each.seconds for each in self._progress.epochs)  # those of earlier processes
        best, answers = self._by_folds() if self._folds else self._by_selection()
        settled = self._judge.settle(answers)
        metrics: dict[str, Any] = {"selection": settled.pop("metrics")}
        manifest = self._write(best, settled, metrics)  # kept should the report part be unreadable
        if report:
            opened = self._dataset.report()
            measured = measure(self._inference(best), manifest, opened, self._prepared.recordings, REPLICATES)
            metrics["report"] = dict(measured.figures)
            manifest = self._write(best, settled, metrics, measured, opened)
        if report and self._means.ranks.is_main:  # without, the report part can still be measured from it
            checkpoint.unlink(missing_ok=True)
        seconds, chosen = time.monotonic() - self._started, self._progress.chosen
        return Outcome(self._out, manifest, seconds, self._identity, chosen_epoch=chosen, skipped=len(faults))

    def _by_selection(self) -> tuple[Snapshot, Any]:
        """Train, keep the epoch that the selection part likes best, and train anew if more is to be learnt from."""
        progress, judge = self._progress, make_judge(self._prepared, self._dataset.selection, self._labels)

        def look(fit: Fit, epoch: int) -> float:
            snapshot = fit.snapshot()
            figure = judge.compare(judge.answer(self._inference(snapshot)))
            if figure >= progress.best or not progress.chosen:
                progress.best, progress.chosen, progress.best_state = figure, epoch, snapshot.to_tensors()
            return figure[0]

        if progress.stage == "train":
            self._train("train", self._dataset.train, self._recipe.optimiser.epochs, look)
        progress.chosen = self._means.ranks.agree(progress.chosen)
        if "refit" in self._stages:
            best = self._refit()
        else:
            best = self._as_stored(Snapshot.from_tensors(self._spec, progress.best_state))
        return best, self._judge.answer(self._inference(best))

    def _by_folds(self) -> tuple[Snapshot, Any]:
        """Choose the epoch by answers to clips that were each left out of one training, then train on all of them."""
        told = self._progress.best_state  # answers of each fold's epochs
        for stage, (learnt, held) in zip(self._stages, self._folds, strict=False):
            judge = make_judge(self._prepared, held, self._labels)

            def look(fit: Fit, epoch: int, stage: str = stage, judge: Judge = judge) -> float:
                answers = judge.answer(self._inference(fit.snapshot()))
                told[f"{epoch} {stage}"] = torch.from_numpy(answers.mean_logits())
                return judge.compare(answers)[0]

            if self._stages.index(stage) >= self._stages.index(self._progress.stage):
                self._train(stage, learnt, self._recipe.optimiser.epochs, look)
        epochs = sorted({int(name.split()[0]) for name in told}, reverse=True)
        answers = {
            epoch: answers_of(self._kept, torch.cat([told[f"{epoch} {stage}"] for stage in self._stages[:-1]]).numpy())
            for epoch in epochs
        }
        chosen = max(epochs, key=lambda epoch: self._judge.compare(answers[epoch]))
        self._progress.chosen = self._means.ranks.agree(chosen)
        return self._refit(), answers[self._progress.chosen]

    def _refit(self) -> Snapshot:
        """Train anew, for the chosen number of epochs, on all that is to be learnt from."""
        fit = self._train("refit", self._learnt, self._progress.chosen)
        return self._as_stored(fit.snapshot())

    def _fit(self, clips: tuple[Clip, ...]) -> Fit:
        recipe, means = self._recipe, self._means
        batches = Batches(
            clips=clips,
            recordings=self._prepared.recordings,
            augmentation=recipe.augment,
            noises=self._prepared.noises,
            input=self._input,
            features=self._backbone.features,
            size=recipe.optimiser.batch,
            seed=recipe.seed,
            corruption=self._prepared.corruption,
            cache=means.cache,
            balanced=recipe.optimiser.balanced,
            background=self._labels.index(BACKGROUND) if recipe.augment.background else 0,
        )
        classes = 1 + max(target for clip in clips for target in clip.targets)
        fit = Fit(self._backbone, self._spec, recipe, batches, classes, workers=means.workers, ranks=means.ranks)
        self._trainable, is_full = fit.backbone, recipe.method == "full"
        if not self._parameters:
            self._parameters = count_parameters(self._spec, self._backbone.spec, fit.training_only, full=is_full)
            self._tell(trainable_line(recipe.method, self._parameters))
        return fit

    def _train(self, stage: str, clips: tuple[Clip, ...], epochs: int, look: Look | None = None) -> Fit:
        """Train those epochs of a stage that are not done yet, with a checkpoint behind each."""
        progress, options, bar, ranks = self._progress, self._recipe.optimiser, self._means.bar, self._means.ranks
        fit, begun = self._fit(clips), time.monotonic()
        if stage != progress.stage:
            progress.stage, progress.epoch, progress.fit = stage, 0, {}
        if progress.epoch:
            fit.restore(progress.fit)
        task = bar.add_task(stage, total=epochs * fit.steps, completed=progress.epoch * fit.steps, note="")
        for epoch in range(progress.epoch + 1, epochs + 1):
            if stage == "train" and options.patience and ranks.agree(progress.vain) >= options.patience:
                self._tell(f"no better figure in {options.patience} looks: training ends after epoch {epoch - 1}")
                break
            loss = fit.run_epoch(epoch, lambda: bar.advance(task))
            looked = look is not None and (epoch % options.judge_every == 0 or epoch == epochs)
            figure = look(fit, epoch) if look is not None and looked else None
            seconds, begun = time.monotonic() - begun, time.monotonic()
            progress.epochs.append(EpochFigures(epoch, loss, figure, stage, fit.rate, round(seconds, 1)))
            told = {"loss": loss} if figure is None else {"loss": loss, f"selection {self._judge.figure}": figure}
            note = f"epoch {epoch}/{epochs} " + " ".join(f"{name} {value:.3f}" for name, value in told.items())
            bar.update(task, note=note)
            if not bar.console.is_terminal:
                self._tell(f"{stage} {note}, {seconds:.1f} s")
            progress.epoch, progress.fit = epoch, fit.state()
            if ranks.is_main:
                save_progress(self._out / CHECKPOINT, progress)
            for name, value in () if self._board is None else (told | {"rate": fit.rate}).items():
                self._board.add_scalar(f"{stage}/{name}", value, epoch)
        return fit

    def _tell(self, line: str) -> None:
        if not self._means.bar.disable:
            self._means.bar.console.print(line, soft_wrap=True)

    def _as_stored(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot as a server will read it from the bundle."""
        return replace(snapshot, weights=as_stored(snapshot.weights, self._recipe.dtype))

    def _inference(self, snapshot: Snapshot) -> Inference:
        backbone = self._backbone
        if snapshot.backbone is not None and self._trainable is not None:
            backbone = self._trainable.backbone(snapshot.backbone)
        return Inference(backbone, snapshot.weights, self._input)

    def _write(
        self,
        best: Snapshot,
        settled: dict[str, Any],
        metrics: dict[str, Any],
        report: Measured | None = None,
        opened: Report | None = None,
    ) -> Manifest:
        """Write the bundle, and before it what stands beside: the backbone where that was trained, the pictures."""
        spec, recipe, progress, out = self._backbone.spec, self._recipe, self._progress, self._out
        trained = None if best.backbone is None else self._trainable
        if trained is not None and best.backbone is not None:
            spec = replace(spec, fingerprint=trained.fingerprint(best.backbone))
        found = {
            **settled,
            "metrics": metrics,
            "training": {
                "recipe": recipe.model_dump(mode="json"),
                "epoch": progress.chosen,
                "parameters": self._parameters,
            },
        }
        manifest = build_manifest(manifest_fields(recipe, spec, self._labels, found))
        if not self._means.ranks.is_main:
            return manifest
        out.mkdir(parents=True, exist_ok=True)
        if trained is not None and best.backbone is not None:
            trained.save(best.backbone, out / BACKBONE_FOLDER)
        recordings, measured, seconds = (
            self._prepared.recordings,
            report or Measured({}),
            time.monotonic() - self._started,
        )
        data = self._dataset.digest([*recordings.faults, *(opened.spans if opened else ())])
        leave_figures(out, self._identity, data, progress.chosen, measured, seconds)
        facts = CardFacts(
            counts=self._counts(metrics),
            split=split_sentences(
                self._dataset, self._learnt, len(self._folds), settled, None if opened is None else opened.clips
            ),
            epochs=max((each.epoch for each in progress.epochs), default=0),
            seconds=seconds,
            faults={span.path.name: reason for span, reason in recordings.faults.items()},
            pictures=leave_pictures(out, progress, self._judge.figure, measured),
        )
        tensors = {name: tensor.to(getattr(torch, recipe.dtype)) for name, tensor in best.weights.to_tensors().items()}
        write_bundle(out, manifest, tensors, model_card(recipe, manifest, settled, facts))
        return manifest

    def _counts(self, metrics: dict[str, Any]) -> dict[str, int]:
        """Clips of each part, and classes or speakers."""
        dataset = self._dataset
        counts = {"training clips": len(dataset.train), "selection clips": len(dataset.selection)}
        if len(self._learnt) > len(dataset.train):
            counts["of them for calibration" if not self._folds else "for calibration"] = len(self._kept)
        counts["speakers" if dataset.verification else "classes"] = len(dataset.labels)
        if "clips" in metrics.get("report", {}):
            counts["report clips"] = metrics["report"]["clips"]
        return counts
