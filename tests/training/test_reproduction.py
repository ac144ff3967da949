"""The table of tests/benchmarks/methods.py on miniature sets: what is run, what is not run again, what is left out."""

from pathlib import Path
from typing import Any

import pytest

from service.training.comparison import compare, find_outcomes, markdown_table
from service.training.methods import METHODS
from service.training.outcome import Outcome
from service.training.recipe import Recipe, parse_recipe, read_recipe
from service.training.shipped import find_recipe
from tests.benchmarks import methods
from tests.benchmarks.methods import TASKS, reproduce
from tests.training.miniature import DIGITS, SPEAKERS, make_digits, make_speakers

TABLES = {
    "adapter": {"embedding_dim": 8},
    "input": {"window_frames": 50},
    "optimiser": {"epochs": 1, "batch": 6},
    "augment": {"views": 1},
}


def small(path: Path, method: str) -> Recipe:
    """Stands for the recipes that ship, on sets that are small."""
    verification = path.stem == "speaker-small"
    task = {"task": "verification" if verification else "classification", "data": SPEAKERS if verification else DIGITS}
    return parse_recipe({"name": path.stem, **task, **TABLES}, method=method)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    make_digits(root / "data" / "fsdd", takes=2)
    make_speakers(root / "data" / "speechocean762-sv", clips=3)
    return root


def run(root: Path, backbone: Path) -> tuple[list[Outcome], list[str]]:
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "read_recipe", small)
        outcomes = reproduce(
            root / "data",
            root / "out",
            told.append,
            tasks=("digits", "speaker", "keywords"),
            methods=("linear", "lora"),
            backbone=str(backbone),
            device="cpu",
            dtype="float32",
            progress=False,
        )
    return outcomes, told


@pytest.fixture(scope="module")
def first(root: Path, tiny_wav2vec2_dir: Path) -> tuple[list[Outcome], list[str]]:
    return run(root, tiny_wav2vec2_dir)


def test_every_cell_has_its_row_and_what_lacks_is_said(first: tuple[list[Outcome], list[str]]) -> None:
    outcomes, told = first
    cells = [f"{task}, {method}, seed 1" for task in ("digits", "speaker", "keywords") for method in ("linear", "lora")]
    assert [line.partition(":")[0] for line in told] == cells
    assert all(line.endswith("arabic-speech-commands does not exist") for line in told[4:])
    entries = compare(outcomes)
    assert [f"{entry.task}, {entry.method}, seed 1" for entry in entries if "eer" not in entry.figure] == cells[:2]
    assert len({entry.figure for entry in entries if entry.task == "speaker"}) == 4
    assert all(entry.interval is not None and entry.interval[0] <= entry.mean <= entry.interval[1] for entry in entries)
    rows = markdown_table(entries).splitlines()[2:]
    assert all(f"| {entry.mean:.3f} |" in row for entry, row in zip(entries, rows, strict=True))


def test_what_is_finished_is_not_run_again(
    first: tuple[list[Outcome], list[str]], root: Path, tiny_wav2vec2_dir: Path
) -> None:
    runs = sorted((root / "out").rglob("figures.json"))
    before = [path.stat().st_mtime_ns for path in runs]
    again, told = run(root, tiny_wav2vec2_dir)
    assert len(runs) == 4
    assert [path.stat().st_mtime_ns for path in runs] == before
    assert told == first[1]
    assert compare(again) == compare(first[0])


def test_a_folder_of_runs_is_found(first: tuple[list[Outcome], list[str]], root: Path, tmp_path: Path) -> None:
    found = markdown_table(compare(find_outcomes([root / "out"])))
    assert set(found.splitlines()) == set(markdown_table(compare(first[0])).splitlines())
    with pytest.raises(FileNotFoundError, match="holds no run"):
        find_outcomes([tmp_path])


@pytest.mark.parametrize("task", TASKS)
def test_every_method_has_the_same_budget(task: str) -> None:
    """Beside what a method trains, only the learning rate may differ; `full` has its own epochs and warm-up too."""
    own = {"full": {"lr", "epochs", "warm_up"}}
    recipes = {method: read_recipe(find_recipe(f"{task}-small"), method) for method in METHODS}
    for method, recipe in recipes.items():
        exclude: Any = {"method": True, "adapter": True, "optimiser": own.get(method, {"lr"})}
        assert recipe.model_dump(exclude=exclude) == recipes["ipet"].model_dump(exclude=exclude), method
    assert recipes["full"].optimiser.warm_up == 1
    assert recipes["full"].optimiser.epochs >= recipes["ipet"].optimiser.epochs
