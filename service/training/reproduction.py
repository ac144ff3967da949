"""`ipet reproduce`: the comparison's cells, a method on a task on a backbone, each an ordinary run of a shipped recipe.

A cell that is finished is not run again, so the command goes on where it stopped. A cell whose data or weights are not
there, or whose run fails, is left out with the reason.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from service.errors import ServiceError
from service.model.loading import describe, load_backbone_checkpoint
from service.training.comparison import ARCHITECTURES
from service.training.folds import fold_recipes
from service.training.loop import train
from service.training.methods import COMPARED
from service.training.outcome import Outcome, finished, read_outcome
from service.training.recipe import Recipe, read_recipe
from service.training.shipped import find_recipe

AST, WAV2VEC2 = ARCHITECTURES.values()


@dataclass(frozen=True, slots=True)
class Task:
    """A task of a study.

    Args:
        recipes: by the backbone's architecture.
        folder: of its recordings, below the data folder.
        folds: whether every fold is the report part once.
    """

    name: str
    folder: str
    recipes: Mapping[str, str]
    folds: bool = False


def _small(name: str, folder: str) -> Task:
    return Task(name, folder, dict.fromkeys((WAV2VEC2, AST), f"{name}-small"))


def _paper(name: str, folder: str, folds: bool = False) -> Task:
    return Task(name, folder, {WAV2VEC2: f"{name}-wav2vec2", AST: f"{name}-ast"}, folds)


SMALL = (
    _small("sound-events", "esc10"),
    _small("keywords", "arabic-speech-commands"),
    _small("digits", "fsdd"),
    _small("speaker", "speechocean762-sv"),
)
PAPER = (
    _paper("esc50", "ESC-50-master", folds=True),
    _paper("gtzan", "gtzan"),
    _paper("speech-commands", "speech_commands_v0.02"),
    _paper("voxceleb1", "voxceleb1"),
    _paper("fsd50k", "FSD50K"),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a study; `fold` is 0 where the task has none."""

    task: Task
    architecture: str
    method: str
    seed: int
    fold: int = 0

    def __str__(self) -> str:
        fold = f" fold {self.fold}" if self.fold else ""
        return f"{self.task.name}, {self.architecture}, {self.method}, seed {self.seed}{fold}"

    @property
    def place(self) -> Path:
        """Directory of the run below that of its backbone."""
        return Path(self.task.name, self.method, f"seed-{self.seed}" + (f"-fold-{self.fold}" if self.fold else ""))


class Unavailable(Exception):
    """Weights or data that a cell needs are not there; the message says what."""


@dataclass(slots=True)
class Reproduction:
    """What came of a study so far; cells that were left out with the reason."""

    outcomes: list[Outcome] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Study:
    """Trains the cells of a table.

    Args:
        data: folder of the tasks' folders.
        out: directory of the runs.
        backbones: instead of the recipes' own, by architecture.
        architectures: of the backbones that are compared.
    """

    tasks: Sequence[Task]
    data: Path
    out: Path
    backbones: Mapping[str, str] = field(default_factory=dict)
    architectures: Sequence[str] = (WAV2VEC2, AST)
    seeds: Sequence[int] = (1,)
    methods: Sequence[str] = COMPARED
    device: str = "auto"
    dtype: str = "auto"
    workers: int = 0
    progress: bool = True
    _fingerprints: dict[str, str] = field(default_factory=dict)
    _lacking: dict[str, str] = field(default_factory=dict)  # backbones that are not there, and why

    def cells(self) -> Iterator[Cell]:
        """In breadth: every task and method of one seed and backbone before the next backbone, then the next seed."""
        for seed in self.seeds:
            for architecture in self.architectures:
                for task in self.tasks:
                    for method in self.methods:
                        if method != "input-prompt" or architecture == AST:
                            yield from self._folds(Cell(task, architecture, method, seed))

    def run(self, on_cell: Callable[[Cell, str, Reproduction], None]) -> Reproduction:
        """Run what is not finished; `on_cell` hears what came of each cell, in a line."""
        so_far = Reproduction()
        for cell in self.cells():
            try:
                outcome, told = self._outcome(cell)
            except (Unavailable, ServiceError, ValueError, OSError, RuntimeError) as error:
                told = so_far.missing[str(cell)] = self._without_places(error)
            else:
                so_far.outcomes.append(outcome)
            on_cell(cell, told, so_far)
        return so_far

    def _outcome(self, cell: Cell) -> tuple[Outcome, str]:
        """Of a run that is finished or is run now, and what to tell of it."""
        data = self.data / cell.task.folder
        if not data.is_dir():
            raise Unavailable(f"no data: there is no folder {cell.task.folder}")
        recipe = self._recipe(cell)
        out = self.out / self._place(recipe.backbone) / cell.place
        outcome = finished(out, recipe)
        told = "was finished"
        if outcome is None:
            self._train(recipe, data, out)
            outcome = read_outcome(out)
            told = f"{outcome.seconds:,.0f} s"
        figures = ", ".join(f"{each.figure} {each.value:.3f}" for each in outcome.headlines())
        return outcome, f"{figures} ({told})"

    def _train(self, recipe: Recipe, data: Path, out: Path) -> None:
        train(
            recipe,
            data,
            out,
            device=self.device,
            dtype=self.dtype,
            progress=self.progress,
            workers=self.workers,
            cache=self.out / "cache",  # worth its room: every method of a task reads the same examples
        )

    def _recipe(self, cell: Cell) -> Recipe:
        recipe = read_recipe(find_recipe(cell.task.recipes[cell.architecture]), cell.method)
        changed = {"seed": cell.seed, "name": cell.task.name}
        changed["backbone"] = self._weights(self.backbones.get(cell.architecture, recipe.backbone), cell.architecture)
        recipe = recipe.model_copy(update=changed)
        return fold_recipes(recipe, self.data / cell.task.folder)[cell.fold] if cell.fold else recipe

    def _folds(self, cell: Cell) -> Iterator[Cell]:
        data = self.data / cell.task.folder
        if not cell.task.folds or not data.is_dir():
            yield cell
            return
        recipe = read_recipe(find_recipe(cell.task.recipes[cell.architecture]))
        try:
            folds = list(fold_recipes(recipe, data))
        except ValueError:
            folds = [1]  # says what is wrong when it is run
        for fold in folds:
            yield replace(cell, fold=fold)

    def _weights(self, name: str, architecture: str) -> str:
        """The backbone's name, once it is known to be there."""
        if name in self._lacking:
            raise Unavailable(self._lacking[name])
        if name not in self._fingerprints:
            try:
                self._fingerprints[name] = self._find(name, architecture)
            except Unavailable as error:
                self._lacking[name] = str(error)
                raise
        return name

    def _find(self, name: str, architecture: str) -> str:
        directory = Path(name)
        shown = directory.name if directory.is_absolute() else name  # a Hub id has a slash too
        try:
            spec = describe(load_backbone_checkpoint(name), name)
        except OSError:
            raise Unavailable(f"no weights: {shown} is no directory here and cannot be downloaded") from None
        if ARCHITECTURES[spec.model_type] != architecture:
            raise Unavailable(f"no weights: {shown} is {ARCHITECTURES[spec.model_type]}, not {architecture}")
        return spec.fingerprint

    def _place(self, backbone: str) -> str:
        """Directory of a backbone's runs: those on other weights of the same name are other runs."""
        return f"{Path(backbone).name}-{self._fingerprints[backbone].removeprefix('sha256:')[:8]}"

    def _without_places(self, error: Exception) -> str:
        """What went wrong, in a line that does not tell where things lie on this machine."""
        line = (str(error) or type(error).__name__).splitlines()[0]
        return line.replace(f"{self.data}/", "").replace(f"{self.out}/", "")
