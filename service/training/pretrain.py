"""Pre-trains a small backbone on folders of audio without labels, by teachers and masked prediction.

A run is decided by its recipe and the audio: the batch of a step follows from the seed and the step, nothing else is
random, so a resumed run equals an uninterrupted one (on as many threads). What comes out is a Hugging Face directory in
float16.
"""

import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import Progress

from service.model.precision import pick_device, pick_dtype
from service.training.cache import ArrayCache
from service.training.checkpoint import CHECKPOINT, load_progress, moments_of, restore_moments, save_progress
from service.training.checkpoint import Progress as Done
from service.training.pretraining.batches import Batch, Batches
from service.training.pretraining.clips import Clips, read_clips
from service.training.pretraining.recipe import PretrainRecipe, read_recipe
from service.training.pretraining.student import Student
from service.training.pretraining.teachers import load_teacher
from service.training.recordings import Recordings
from service.training.tables import progress_bar

LARGEST_GRADIENT = 2.0  # norm
BETAS = (0.9, 0.98)
TOLD_SECONDS = 60.0  # between two lines where there is no terminal

Report = Callable[[int, dict[str, float]], None]


class Stopped(RuntimeError):
    """A run that was told to end; the message says how it goes on."""


def pretrain(
    recipe: Path, audio: Sequence[Path], out: Path, device: str = "auto", cache: Path | None = None, fresh: bool = False
) -> None:
    """Run a recipe on the audio below some folders and write the backbone to `out`.

    The backbone and `checkpoint.safetensors` beside it are replaced every `checkpoint_minutes`, and on SIGTERM or
    SIGINT; a run found there goes on unless `fresh`.

    Args:
        cache: folder for decoded recordings and the teachers' answers.

    Raises:
        BadRecipe, BadDataset, MissingTeacher, BadCheckpoint: before the first step; they say what would be right.
        FileNotFoundError: a speech synthesiser is not installed.
        Stopped: a signal ended it; the same command goes on.
    """
    read, arrays = read_recipe(recipe), None if cache is None else ArrayCache(cache)
    with progress_bar() as bar:
        bar.console.print("reading the audio")
        clips = read_clips(read, audio, Recordings(cache=arrays))
        bar.console.print(f"{sum(len(each.clips) for each in clips):,} clips; the teachers hear the first")
        run(read, clips, out, device=device, fresh=fresh, report=_teller(bar, read.steps), cache=arrays)


def run(
    recipe: PretrainRecipe,
    clips: Sequence[Clips],
    out: Path,
    *,
    device: str = "cpu",
    fresh: bool = False,
    report: Report = lambda step, losses: None,
    cache: ArrayCache | None = None,
) -> None:
    """`pretrain` on clips in memory; `report(step, losses)` is called after every step."""
    where, decided = pick_device(device), recipe.model_dump_json(exclude={"checkpoint_minutes"})
    identity = hashlib.sha256(decided.encode()).hexdigest()
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    teachers = [load_teacher(section, where) for section in recipe.teachers]
    batches = Batches(recipe, clips, teachers, cache)
    torch.manual_seed(recipe.seed)
    student = Student(recipe, batches.sizes, [teacher.of_clip for teacher in teachers]).to(where)
    optimiser = torch.optim.AdamW(student.parameters(), betas=BETAS, weight_decay=recipe.weight_decay)
    done = Done(identity) if fresh else load_progress(out / CHECKPOINT, identity)
    if done.epoch:
        student.load_state_dict({name: done.fit[f"student.{name}"] for name in student.state_dict()})
        restore_moments(optimiser, done.fit)
    saved = time.monotonic()
    with _told_to_stop() as stop:
        for step, made in _ahead(batches, range(done.epoch, recipe.steps)):
            optimiser.param_groups[0]["lr"] = recipe.learning_rate * rate(recipe, step)
            losses = _descend(student, [batch.to(where) for batch in made], optimiser)
            report(step + 1, losses)
            ended = stop.is_set() or step + 1 == recipe.steps
            if ended or time.monotonic() - saved > 60 * recipe.checkpoint_minutes:
                state = {f"student.{name}": value for name, value in student.state_dict().items()}
                done = Done(identity, epoch=step + 1, fit=state | moments_of(optimiser))
                save_progress(out / CHECKPOINT, done)
                student.export(out)
                saved = time.monotonic()
            if ended and step + 1 < recipe.steps:
                raise Stopped(f"stopped after {step + 1} of {recipe.steps} steps; the same command goes on from there")


def rate(recipe: PretrainRecipe, step: int) -> float:
    """Relative learning rate: a linear warm-up, a plateau, and a linear fall to zero in the last `cool_down` steps."""
    return min(1.0, (step + 1) / recipe.warm_up, (recipe.steps - step) / recipe.cool_down)


def _descend(student: Student, batches: list[Batch], optimiser: torch.optim.Optimizer) -> dict[str, float]:
    """One step; the losses, each a mean over all rows."""
    rows, where = sum(len(batch.heard) for batch in batches), batches[0].heard.device
    dtype = pick_dtype(student.recipe.dtype, where)
    told: dict[str, float] = {}
    optimiser.zero_grad()
    for batch in batches:
        with torch.autocast(where.type, dtype, enabled=dtype is not torch.float32):
            losses = {name: loss * len(batch.heard) / rows for name, loss in student(batch).items()}
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        told |= {name: told.get(name, 0.0) + loss.item() for name, loss in losses.items()}
    torch.nn.utils.clip_grad_norm_(student.parameters(), LARGEST_GRADIENT)
    optimiser.step()
    return told


def _ahead(batches: Batches, steps: range) -> Iterator[tuple[int, list[Batch]]]:
    """Every step and its batches, made in a thread while the step before is learnt from."""
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(batches.step, step) for step in steps[:1]]
        for step in steps:
            made = coming.pop().result()
            coming += [pool.submit(batches.step, step + 1)] if step + 1 < steps.stop else []
            yield step, made


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, in place of ending the process in the middle of a step."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {each: signal.signal(each, lambda *_: stop.set()) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _teller(bar: Progress, steps: int) -> Report:
    """What moves the bar, or tells a line every minute where there is no terminal."""
    task, told = bar.add_task("steps", total=steps, note=""), 0.0

    def report(step: int, losses: dict[str, float]) -> None:
        nonlocal told
        text = " ".join(f"{name} {value:.3f}" for name, value in losses.items() if not name.endswith("_middle"))
        bar.update(task, completed=step, note=text)
        if not bar.console.is_terminal and time.monotonic() - told > TOLD_SECONDS:
            told = time.monotonic()
            bar.console.print(f"{time.strftime('%H:%M')} step {step}: {text}", soft_wrap=True)

    return report
