"""Pre-trains a small backbone: wav2vec 2.0's filter bank first, then every task at once. `pretrain` is the entry point.

A run is decided by its recipe alone: the batch of a step follows from the seed and the step, nothing else is
random, so a resumed run equals an uninterrupted one (on as many threads). What comes out is a Hugging Face
directory in float16. It knows no adapters and reads no report parts.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from service.model.precision import pick_dtype
from service.training.pretraining.ast_student import ASTStudent
from service.training.pretraining.corpus import (
    Corpus,
    read_corpus,
    synthesised_utterances,
    synthesised_words,
    with_phonemes,
)
from service.training.pretraining.optimiser import Moments, Optimiser
from service.training.pretraining.pace import Pace
from service.training.pretraining.recipe import PretrainRecipe, TaskStage, read_recipe
from service.training.pretraining.sampling import Batch, Classes, Sampler
from service.training.pretraining.student import FRONT_LAYERS, FilterBank, Heads, Student, Wav2Vec2Student

CHECKPOINT = "checkpoint.safetensors"
LARGEST_GRADIENT = 2.0  # norm
LAST_RATE = 0.005  # learning rate at the end, relative
FILTER_BANK_WARM_UP = 50


@dataclass(frozen=True, slots=True)
class _State:
    """A checkpoint: where the run was, the student's tensors, and the optimiser's by parameter."""

    stage: str
    step: int
    student: dict[str, Tensor]
    moments: Moments


Report = Callable[[str, int, dict[str, float]], None]
_Made = TypeVar("_Made")


def pretrain(recipe: Path, data: Path, out: Path, resume: bool = True) -> None:
    """Run a recipe on the corpora below `data` and write the backbone to `out`.

    `out/checkpoint.safetensors` is written every `checkpoint_steps`, the backbone with it; a run found there goes on
    unless `resume` is false.

    Raises:
        pydantic.ValidationError: for a recipe that is not one.
        FileNotFoundError: for a corpus that is not below `data`, or a speech synthesiser that is not installed.
        ValueError, OSError: for a teacher that is none.
    """
    read = read_recipe(recipe)
    with _progress() as (bar, report):
        bar.console.print("reading the corpora")
        corpus = read_corpus(data, read.held_out)
        if read.synthesis.clips or read.synthesis.utterances:
            bar.console.print("synthesising speech")
            said = read.synthesis
            spoken = synthesised_words(said.clips, read.seed, said.telephone)
            spoken += synthesised_utterances(corpus, said.utterances, read.seed, said.telephone)
            corpus = replace(corpus, train=corpus.train + spoken)
        if read.tasks.sizes.utterances:
            corpus = with_phonemes(corpus)
        run(read, corpus, out, resume, report)


def run(recipe: PretrainRecipe, corpus: Corpus, out: Path, resume: bool, report: Report | None = None) -> Student:
    """`pretrain` on a corpus in memory; `report(stage, step, losses)` is called after every step."""
    torch.manual_seed(recipe.seed)
    out.mkdir(parents=True, exist_ok=True)
    sampler = Sampler(corpus, recipe.tasks, recipe.seed)
    student = _make_student(recipe, sampler.classes)
    state = _load(out) if resume else None
    if state is not None:
        student.load_state_dict(state.student)
    pace = Pace(recipe.threads)
    torch.set_flush_denormal(True)
    try:
        if student.filter_bank is not None and recipe.start is None and (state is None or state.stage == "filter bank"):
            _learn_filter_bank(recipe, sampler, student, student.filter_bank, out, state, pace, report)
            state = None
        _learn_tasks(recipe, sampler, student, out, state, pace, report)
    finally:
        torch.set_flush_denormal(False)
    return student


def _make_student(recipe: PretrainRecipe, classes: Classes) -> Student:
    if recipe.architecture == "ast":
        return ASTStudent(recipe.ast_geometry, classes, recipe.teacher)
    student = Wav2Vec2Student(recipe.geometry, classes)
    if recipe.start is not None:
        student.start_from(recipe.start)
    return student


def _learn_filter_bank(
    recipe: PretrainRecipe,
    sampler: Sampler,
    student: Student,
    bank: FilterBank,
    out: Path,
    state: _State | None,
    pace: Pace,
    report: Report | None,
) -> None:
    stage = recipe.filter_bank
    optimizer = Optimiser([{"params": list(bank.parameters())}], weight_decay=1e-3)
    first = _restore(optimizer, state)
    for step, windows in _ahead(lambda step: sampler.plain(step, stage), range(first, stage.steps)):
        with pace.step():
            _set_rate(optimizer, stage.learning_rate, step, stage.steps, FILTER_BANK_WARM_UP)
            loss = bank.loss(windows)
            _descend(optimizer, loss, list(bank.parameters()))
        if report:
            report("filter bank", step + 1, {"spectrum": loss.item()})
        if (step + 1) % recipe.checkpoint_steps == 0 and step + 1 < stage.steps:
            _save(out, "filter bank", step + 1, student, optimizer)
    bank.hand_over(student.backbone.feature_extractor.conv_layers[FRONT_LAYERS])


def _learn_tasks(
    recipe: PretrainRecipe,
    sampler: Sampler,
    student: Student,
    out: Path,
    state: _State | None,
    pace: Pace,
    report: Report | None,
) -> None:
    stage = recipe.tasks
    front = [] if student.filter_bank is None else list(student.filter_bank.layers.parameters())
    matrices = student.matrices() if stage.matrix_rate else []
    apart = {id(parameter) for parameter in front + matrices}
    rest = [parameter for parameter in student.parameters() if id(parameter) not in apart]
    groups = [{"params": rest, "scale": 1.0}]
    if front:
        groups.append({"params": front, "scale": stage.filter_bank_rate})
    optimizer = Optimiser(
        groups, matrices, weight_decay=stage.weight_decay, scale=stage.matrix_rate / stage.learning_rate
    )
    dtype = pick_dtype(recipe.dtype, torch.device("cpu"))
    for step, batch in _ahead(sampler.batch, range(_restore(optimizer, state), stage.steps)):
        torch.manual_seed(recipe.seed * stage.steps + step)  # dropout
        thawed = step >= stage.thaw * stage.steps
        for parameter in front:
            parameter.requires_grad_(thawed)
        with pace.step():
            _set_rate(optimizer, stage.learning_rate, step, stage.steps, stage.warm_up)
            with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
                losses = task_losses(student, batch, stage, step)
            loss = torch.stack(list(losses.values())).sum()
            _descend(optimizer, loss, rest + front + matrices)
        if report:
            report("tasks", step + 1, {name: value.item() for name, value in losses.items()})
        if (step + 1) % recipe.checkpoint_steps == 0 or step + 1 == stage.steps:
            _save(out, "tasks", step + 1, student, optimizer)
            student.export(out)


def _ahead(make: Callable[[int], _Made], steps: range) -> Iterator[tuple[int, _Made]]:
    """Every step and what `make` makes for it, made in a thread while the step before is learnt from."""
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(make, step) for step in steps[:1]]
        for step in steps:
            made = coming.pop()
            coming += [pool.submit(make, following) for following in steps[step + 1 - steps.start :][:1]]
            yield step, made.result()


def task_losses(student: Student, batch: Batch, stage: TaskStage, step: int) -> dict[str, Tensor]:
    """Every loss of one step, weighted: of the words' windows and of the long ones, at the top and the middle."""
    short, long = student(batch.words), student(batch.long)
    weights = stage.weights
    losses = {}
    for name, dense in student.dense_losses().items():
        if weight := getattr(weights, name):
            losses[name] = weight * (dense(short, batch.words) + dense(long, batch.long)) / 2
    margin = stage.margin * min(1.0, step / stage.margin_steps)
    if batch.utterances is not None:
        for name, value in student.phoneme_losses(batch.utterances).items():
            losses[name] = weights.phonemes * (weights.middle if name.endswith("_middle") else 1.0) * value
    places = (
        ("", student.top, short.top, long.top, 1.0),
        ("_middle", student.middle, short.middle, long.middle, weights.middle),
    )
    for suffix, heads, words, others, share in places:
        for name, value in _head_losses(heads, words, others, batch, stage, margin).items():
            losses[name + suffix] = share * getattr(weights, name) * value
    return losses


def _head_losses(
    heads: Heads, short: Tensor, long: Tensor, batch: Batch, stage: TaskStage, margin: float
) -> dict[str, Tensor]:
    """Losses of the heads at one place; `short` `[W, E]` and `long` `[L, E]` are pooled."""
    speakers, events = len(batch.speaker_labels), len(batch.event_targets)
    normed = heads.norm(long)
    voices = heads.speaker_logits(long[:speakers], batch.speaker_labels, margin, stage.scale)
    return {
        "words": functional.cross_entropy(
            heads.words(heads.norm(short)), batch.word_labels, label_smoothing=stage.label_smoothing
        ),
        "speakers": functional.cross_entropy(voices, batch.speaker_labels),
        "events": functional.cross_entropy(heads.events(normed[speakers : speakers + events]), batch.event_targets),
        "sounds": functional.cross_entropy(heads.sounds(normed[speakers + events :]), batch.sound_labels),
    }


def _set_rate(optimizer: Optimiser, rate: float, step: int, steps: int, warm_up: int) -> None:
    """Linear warm-up, then a cosine to LAST_RATE."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
    optimizer.set_rate(rate * min(1.0, (step + 1) / warm_up) * (cosine + LAST_RATE))


def _descend(optimizer: Optimiser, loss: Tensor, parameters: list[torch.nn.Parameter]) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
    optimizer.step()


def _save(out: Path, stage: str, step: int, student: Student, optimizer: Optimiser) -> None:
    """Write the checkpoint whole or not at all: tensors `student.*` and `optimizer.<parameter>.<moment>`."""
    tensors = {f"student.{name}": value.contiguous() for name, value in student.state_dict().items()}
    for number, moments in optimizer.moments().items():
        tensors |= {f"optimizer.{number}.{name}": value.contiguous() for name, value in moments.items()}
    partial = out / (CHECKPOINT + ".partial")
    save_file(_unshared(tensors), partial, metadata={"stage": stage, "step": str(step)})
    os.replace(partial, out / CHECKPOINT)


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file format wants every tensor in memory of its own; the filter bank's are the backbone's too."""
    seen: set[int] = set()
    own = {}
    for name, value in tensors.items():
        own[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return own


def _load(out: Path) -> _State | None:
    path = out / CHECKPOINT
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    moments: Moments = {}
    student = {}
    for name, value in load_file(path).items():
        owner, rest = name.split(".", 1)
        if owner == "student":
            student[rest] = value
        else:
            number, moment = rest.split(".", 1)
            moments.setdefault(int(number), {})[moment] = value
    return _State(metadata["stage"], int(metadata["step"]), student, moments)


def _restore(optimizer: Optimiser, state: _State | None) -> int:
    """Put the optimiser back where it was and answer the step to go on with."""
    if state is None:
        return 0
    optimizer.restore(state.moments)
    return state.step


@contextmanager
def _progress() -> Iterator[tuple[Progress, Report]]:
    """A progress bar, and the report that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[losses]}")) as bar:
        tasks: dict[str, Any] = {}
        shown = [0.0]

        def report(stage: str, step: int, losses: dict[str, float]) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=None, losses="")
            text = " ".join(f"{name} {value:.2f}" for name, value in losses.items() if "_" not in name)
            bar.update(tasks[stage], completed=step, losses=text)
            if not bar.console.is_terminal and time.monotonic() - shown[0] > 30:
                shown[0] = time.monotonic()
                bar.console.print(f"{stage} {step}: {text}")

        yield bar, report
