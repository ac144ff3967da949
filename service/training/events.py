"""`ipet evaluate --events` and `ipet calibrate --events`: a bundle on recordings whose events are known.

Recordings go through the windows, kernels and timeline of the server. Thresholds are fitted for each label by its
segment F1; what is told of them is measured on recordings that they were not fitted on, which are dealt into folds.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from service.audio.features import InputSpec
from service.audio.moving import MovingWindows
from service.audio.waveform import SAMPLING_RATE
from service.errors import InvalidRequest
from service.model.spec import TaskType
from service.scoring.bootstrap import REPLICATES, file_intervals
from service.scoring.events import COLLAR_SECONDS, COLLAR_SHARE, SEGMENT_SECONDS, event_counts, f_scores, segment_counts
from service.scoring.events import Span as Stretch
from service.scoring.score import activate
from service.timeline.parameters import BACKGROUND, FRAME_SECONDS, THRESHOLD, Parameters
from service.timeline.timeline import Timeline
from service.training.datasets.dataset import BadDataset, Span, read_table
from service.training.figures import rounded
from service.training.inference import Opened
from service.training.recordings import Recordings

NAMES: Final = (("file", "start", "end", "label"), ("filename", "onset", "offset", "event_label"))  # ours, and DCASE's
BLOCK_SECONDS: Final = 60
LEVELS: Final = tuple(round(0.05 * step, 2) for step in range(1, 20))  # thresholds that are tried
FOLDS: Final = 5
DECIMALS: Final = 4

Kind = Literal["event", "segment"]
Counts = dict[Kind, NDArray[np.int64]]  # [files, labels, 3]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Heard:
    """A recording as an adapter hears it.

    Args:
        scores: `[W, C]`, of its windows.
        truth: what is heard when.
    """

    scores: Floats
    seconds: float
    truth: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as right: collars of events, seconds of segments."""

    collar: float = COLLAR_SECONDS
    share: float = COLLAR_SHARE
    segment: float = SEGMENT_SECONDS


class Subject:
    """A bundle, and what it hears in recordings.

    Raises:
        InvalidRequest: it is not for classification.
    """

    def __init__(self, opened: Opened) -> None:
        self._opened, self.manifest = opened, opened.manifest
        if self.manifest.task_type is not TaskType.CLASSIFICATION:
            raise InvalidRequest(f"{self.manifest.name} is for {self.manifest.task_type.value}; events have labels")
        self.labels = self.manifest.labels or ()
        self.told = tuple(label for label in self.labels if label != BACKGROUND)

    @property
    def spec(self) -> InputSpec:
        return self.manifest.recording_spec()

    @property
    def window_seconds(self) -> float:
        return self.spec.window_frames * FRAME_SECONDS

    def hear(
        self, data: Path, table: Path, hop: float, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Heard]:
        """Every recording of a table. Raises BadDataset, also where one cannot be read."""
        truths = read_truth(table, self.told)
        recordings, heard = Recordings(0.0), []
        for number, (file, truth) in enumerate(truths.items()):
            progress(number, len(truths))
            span = Span(data / file)
            if not list(recordings.readable([span])):
                raise BadDataset(f"{span.path}: {recordings.faults[span]}")
            samples = recordings.samples(span)
            scores = np.concatenate(list(self._scores(samples, hop)))
            heard.append(Heard(scores, len(samples) / SAMPLING_RATE, truth))
        return heard

    def _scores(self, samples: NDArray[np.float32], hop: float) -> Iterator[Floats]:
        moving = MovingWindows(self._opened.backbone.features, [self.spec], round(hop / FRAME_SECONDS))
        temperature = (self.manifest.calibration and self.manifest.calibration.temperature) or 1.0
        block = BLOCK_SECONDS * SAMPLING_RATE
        for start in range(0, len(samples), block):
            moving.add(torch.from_numpy(samples[start : start + block]))
            cuts = moving.take(2**31)
            cuts += moving.finish() if start + block >= len(samples) else []
            for cut in cuts:
                logits = np.concatenate(self._opened.inference.answers([cut.windows.inputs]))
                scores = activate(logits, self.manifest.activation or "softmax", temperature)
                yield scores.astype(np.float64)

    def found(self, heard: Heard, parameters: Parameters, kind: type[Timeline] = Timeline) -> list[Stretch]:
        """What the timeline makes of a recording."""
        timeline = kind(self.labels, self.window_seconds, parameters)
        events = timeline.add(heard.scores) + timeline.finish(heard.seconds)
        return [(event.label, event.start, event.end) for event in events]

    def count(
        self, recordings: Sequence[Heard], parameters: Parameters, rules: Rules, kind: type[Timeline] = Timeline
    ) -> Counts:
        """What is right and what is not, by file and label."""
        both = [(one.truth, self.found(one, parameters, kind)) for one in recordings]
        events = [event_counts(truth, told, self.told, rules.collar, rules.share) for truth, told in both]
        segments = [segment_counts(truth, told, self.told, rules.segment) for truth, told in both]
        return {"event": np.stack(events), "segment": np.stack(segments)}


class AlwaysBest(Timeline):
    """The detector that always names its best class, which real ones are compared with."""

    def _cell(self, score: Floats) -> list[Any]:
        return super()._cell((score == np.where(self._is_told, score, -1.0).max()).astype(np.float64))

    def __init__(self, labels: Sequence[str], window_seconds: float, parameters: Parameters) -> None:
        plain = replace(parameters, threshold=THRESHOLD, hysteresis=None, smoothing=0.0, min_seconds=None)
        super().__init__(labels, window_seconds, plain)
        self._is_told = np.array([label != BACKGROUND for label in labels])


def evaluate_events(
    opened: Opened,
    data: Path,
    table: Path,
    *,
    asked: Mapping[str, Any] | None = None,
    rules: Rules | None = None,
    bootstrap: int = REPLICATES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure how well a bundle tells what is heard when.

    Args:
        data: where the table's files are seen from.
        table: CSV of `file,start,end,label` (tabs and DCASE's names too); a file without events has one row without.
        asked: parameters of the timeline, in place of the manifest's.

    Returns:
        JSON-ready: event and segment F1 with intervals over files, by class, and those of `AlwaysBest`.

    Raises:
        BadDataset: the table or a recording cannot be read, or has labels that the bundle lacks.
        InvalidRequest: see `Subject` and `Parameters`.
    """
    subject, rules = Subject(opened), rules or Rules()
    parameters = Parameters.of(subject.manifest.events_asked, **(asked or {}))
    heard = subject.hear(data, table, parameters.hop, progress)
    counts = subject.count(heard, parameters, rules)
    always = subject.count(heard, parameters, rules, AlwaysBest)
    return {
        "name": subject.manifest.name,
        "digest": opened.files.digest,
        "recordings": len(heard),
        "seconds": round(sum(one.seconds for one in heard), 1),
        "events": sum(len(one.truth) for one in heard),
        "parameters": parameters.told() | {"window": subject.window_seconds},
        "rules": {"collar": rules.collar, "share": rules.share, "segment": rules.segment},
        **figures(counts, bootstrap),
        "per_class": _per_class(subject.told, counts),
        "always_its_best_class": figures(always, bootstrap),
    }


def calibrate_events(
    opened: Opened,
    data: Path,
    table: Path,
    out: Path,
    *,
    asked: Mapping[str, Any] | None = None,
    bootstrap: int = REPLICATES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write a bundle to `out` with a threshold of its own for each label, and a report beside it.

    Returns:
        The report: figures of 0.5 for all labels (`before`), and of thresholds by label on recordings that were left
        out of their fit (`after`); with fewer than two recordings `held_out` is false.

    Raises: as `evaluate_events`.
    """
    subject, rules = Subject(opened), Rules()
    parameters = Parameters.of(subject.manifest.events_asked, **(asked or {}))
    heard = subject.hear(data, table, parameters.hop, progress)
    tried = [subject.count(heard, _at(parameters, level), rules) for level in LEVELS]
    folds = np.arange(len(heard)) % min(FOLDS, len(heard))
    held_out = len(heard) > 1
    after: Counts = {kind: np.zeros_like(each) for kind, each in tried[0].items()}
    for fold in np.unique(folds):
        inside = folds == fold
        levels = _best_levels(subject.told, tried, ~inside if held_out else inside)
        counts = subject.count([heard[one] for one in np.flatnonzero(inside)], _at(parameters, levels), rules)
        for kind in after:
            after[kind][inside] = counts[kind]
    flat = subject.count(heard, _at(parameters, THRESHOLD), rules)
    thresholds = _best_levels(subject.told, tried, np.ones(len(heard), dtype=bool))
    report = {
        "name": subject.manifest.name,
        "digest": opened.files.digest,
        "recordings": len(heard),
        "events": sum(len(one.truth) for one in heard),
        "held_out": held_out,
        "thresholds": thresholds,
        "before": figures(flat, bootstrap),
        "after": figures(after, bootstrap),
    }
    events = (json.loads(opened.files.config).get("events") or {}) | {"threshold": thresholds}
    return opened.calibrated(out, {"events": events}, "events_calibration", report)


def figures(counts: Counts, bootstrap: int) -> dict[str, Any]:
    """F1, precision and recall over all files and labels, and intervals of F1 over files."""
    found = file_intervals(counts, bootstrap).intervals if bootstrap else {}  # type: ignore[arg-type]
    told: dict[str, Any] = {}
    for kind, each in counts.items():
        precision, recall, f1 = f_scores(each.sum(axis=(0, 1)))
        told[kind] = {"f1": rounded(f1), "precision": rounded(precision), "recall": rounded(recall)}
        if kind in found:
            told[kind]["interval"] = [rounded(end) for end in found[kind]]
    return told


def read_truth(table: Path, labels: Sequence[str]) -> dict[str, tuple[Stretch, ...]]:
    """What is heard when, by file in the table's order. Raises BadDataset."""
    names = NAMES[1] if _has(table, NAMES[1]) else NAMES[0]
    found: dict[str, list[Stretch]] = defaultdict(list)
    for line, row in enumerate(read_table(table, names, filled=names[:1]), start=2):
        file, start, end, label = (row[name] for name in names)
        stretches = found[file]
        if not label or label == BACKGROUND:
            continue
        try:
            stretch = (label, float(start), float(end))
        except ValueError as error:
            raise BadDataset(f"{table}, line {line}: {names[1]} and {names[2]} are seconds; {error}") from None
        if label not in labels or not 0 <= stretch[1] < stretch[2]:
            known = ", ".join(labels)
            raise BadDataset(
                f"{table}, line {line}: expected 0 <= {names[1]} < {names[2]} and one of {known}, got {row}"
            )
        stretches.append(stretch)
    return {file: tuple(stretches) for file, stretches in found.items()}


def _has(table: Path, names: Sequence[str]) -> bool:
    with table.open(encoding="utf-8-sig", errors="replace") as file:
        return names[0] in file.readline().strip().replace("\t", ",").split(",")


def _at(parameters: Parameters, threshold: float | Mapping[str, float]) -> Parameters:
    return replace(parameters, threshold=threshold)


def _best_levels(labels: Sequence[str], tried: Sequence[Counts], files: NDArray[np.bool_]) -> dict[str, float]:
    """For each label the threshold of the highest segment F1, the middle one of equals; 0.5 where it is never heard."""
    counts = np.stack([each["segment"][files].sum(axis=0) for each in tried])  # [levels, labels, 3]
    scores = f_scores(counts)[..., 2]
    is_there = counts[..., [0, 2]].sum(axis=(0, 2)) > 0
    best = scores >= scores.max(axis=0) - 1e-12
    middle = [float(np.median(np.asarray(LEVELS)[column])) for column in best.T]
    return {
        label: round(level, DECIMALS) if there else THRESHOLD
        for label, level, there in zip(labels, middle, is_there, strict=True)
    }


def _per_class(labels: Sequence[str], counts: Counts) -> dict[str, dict[str, float]]:
    sums = {kind: each.sum(axis=0) for kind, each in counts.items()}
    return {
        label: {
            "events": int(sums["event"][row][[0, 2]].sum()),
            "event_f1": rounded(f_scores(sums["event"][row])[2]),
            "segment_f1": rounded(f_scores(sums["segment"][row])[2]),
        }
        for row, label in enumerate(labels)
    }
