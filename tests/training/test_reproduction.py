"""Studies on miniature data sets: what is run, what is not run again, what is left out."""

from pathlib import Path

import pytest

from service.model.spec import ModelType
from service.training.comparison import ARCHITECTURES, compare, draw, find_outcomes, markdown_table
from service.training.comparison_page import comparison_page
from service.training.methods import METHODS
from service.training.recipe import read_recipe
from service.training.reproduction import AST, PAPER, SMALL, WAV2VEC2, Cell, Reproduction, Study, Task
from service.training.shipped import find_recipe
from tests.training.miniature import make_digits, make_speakers

RECIPE = """
name = "{name}"
task = "{task}"
[data]
kind = "{kind}"
{data}
[adapter]
embedding_dim = 8
[input]
window_frames = 50
mean = -4.0
std = 4.0
[optimiser]
epochs = 1
batch = 6
[augment]
views = 1
[methods.input-prompt.adapter]
input_prompt = 4
"""
Told = list[tuple[str, str]]


def small_tasks(root: Path) -> tuple[Task, ...]:
    """Digits, speakers, and a task without data."""
    make_digits(root / "digits", takes=2)
    make_speakers(root / "voices" / "voices")
    tasks = []
    for name, task, kind, data, folder in (
        ("digits", "classification", "digits", "", "digits"),
        (
            "voices",
            "verification",
            "speakers",
            'selection_speakers = 2\ncondition_noise = "../noise"\ntrials = { clean = "veri_test.txt" }',
            "voices/voices",
        ),
        ("elsewhere", "classification", "digits", "", "elsewhere"),
    ):
        path = root / f"{name}.toml"
        path.write_text(RECIPE.format(name=f"{name}-small", task=task, kind=kind, data=data))
        tasks.append(Task(name, folder, dict.fromkeys((AST, WAV2VEC2), str(path))))
    return tuple(tasks)


def run(study: Study) -> tuple[Reproduction, Told]:
    told: Told = []
    return study.run(lambda cell, line, _: told.append((str(cell), line))), told


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(root: Path, tiny_ast_dir: Path, tiny_wav2vec2_dir: Path) -> Study:
    return Study(
        tasks=small_tasks(root / "data"),
        data=root / "data",
        out=root / "out",
        backbones={AST: str(tiny_ast_dir), WAV2VEC2: str(tiny_wav2vec2_dir)},
        methods=("linear", "input-prompt"),
        device="cpu",
        dtype="float32",
        progress=False,
    )


@pytest.fixture(scope="module")
def first(study: Study) -> tuple[Reproduction, Told]:
    return run(study)


def test_cells_come_in_breadth() -> None:
    study = Study(SMALL, Path("data"), Path("out"), seeds=(1, 2))
    cells = list(study.cells())
    assert len(cells) == 2 * (4 * 5 + 4 * 6)
    assert [cell.architecture for cell in cells[:44]] == [WAV2VEC2] * 20 + [AST] * 24
    assert {cell.seed for cell in cells[:44]} == {1}
    assert len({(cell.architecture, cell.place) for cell in cells}) == len(cells)


def test_every_method_has_its_row_and_what_lacks_is_said(first: tuple[Reproduction, Told]) -> None:
    so_far, told = first
    assert [cell for cell, _ in told] == [
        f"{task}, {architecture}, {method}, seed 1"
        for architecture, methods in ((WAV2VEC2, ("linear",)), (AST, ("linear", "input-prompt")))
        for task in ("digits", "voices", "elsewhere")
        for method in methods
    ]
    assert set(so_far.missing.values()) == {"no data: there is no folder elsewhere"}
    assert len(so_far.outcomes) == 6
    assert all("elsewhere" in cell for cell in so_far.missing)
    entries = compare(so_far.outcomes)
    assert {(e.task, e.figure) for e in entries} == {
        ("digits", "accuracy"),
        ("voices", "eer clean"),
        ("voices", "eer noise15db"),
    }
    assert len(entries) == 3 * 3
    for entry in entries:
        assert entry.interval is not None
        assert entry.interval[0] <= entry.mean <= entry.interval[1]
    counts = {(e.method, e.backbone.rpartition(" (")[2]): e.trainable for e in entries if e.task == "digits"}
    head, frame = 2 * 48 + 3 * (48 + 1), 2 * 4 * 50 + 2 * 4 * (128 - 2 * 4)
    assert counts[("linear", "AST)")] == head
    assert counts[("input-prompt", "AST)")] == head + frame


def test_what_is_finished_is_not_run_again(study: Study, first: tuple[Reproduction, Told], root: Path) -> None:
    runs = sorted((root / "out").rglob("figures.json"))
    before = [path.stat().st_mtime_ns for path in runs]
    again, told = run(study)
    assert [path.stat().st_mtime_ns for path in runs] == before
    assert sum(line.endswith("(was finished)") for _, line in told) == 6
    assert again.missing == first[0].missing
    assert compare(again.outcomes) == compare(first[0].outcomes)


def test_a_run_that_fails_is_left_out(study: Study, tmp_path: Path, root: Path) -> None:
    task = study.tasks[0]
    recipe = root / "data" / "long.toml"
    recipe.write_text(RECIPE.format(name="long", task="classification", kind="keywords", data=""))
    other = Study(
        (Task("long", task.folder, {WAV2VEC2: str(recipe), AST: str(recipe)}),),
        study.data,
        tmp_path,
        backbones={WAV2VEC2: str(tmp_path / "nowhere"), AST: study.backbones[AST]},
        methods=("linear",),
        progress=False,
    )
    so_far, told = run(other)
    assert not so_far.outcomes
    reasons = list(so_far.missing.values())
    assert reasons[0].startswith("no weights: ")
    assert "train.csv" in reasons[1]
    assert [line for _, line in told] == reasons
    assert not any(str(study.data) in reason for reason in reasons)


def test_an_ast_is_not_a_wav2vec2(study: Study, tmp_path: Path) -> None:
    other = Study(
        study.tasks[:1], study.data, tmp_path, {WAV2VEC2: study.backbones[AST]}, methods=("linear",), progress=False
    )
    cell = next(other.cells())
    so_far, _ = run(other)
    assert so_far.missing[str(cell)].endswith("is AST, not wav2vec 2.0")


def test_architectures_can_be_left_out() -> None:
    cells = Study(SMALL, Path("data"), Path("out"), architectures=[WAV2VEC2]).cells()
    assert {cell.architecture for cell in cells} == {WAV2VEC2}


def test_the_page_tells_everything(first: tuple[Reproduction, Told]) -> None:
    so_far, _ = first
    entries = compare(so_far.outcomes)
    page = comparison_page("ipet reproduce --small", False, entries, so_far.missing, 1, "comparison.png")
    assert page.count("### tiny-") == 2
    assert page.count("\n| input-prompt |") == 1
    assert page.count("\n- elsewhere, ") == 3
    assert "![Figures with their intervals](comparison.png)" in page
    assert all(f"{entry.mean:.3f}" in page for entry in entries)
    assert str(so_far.outcomes[0].directory.parent) not in page


def test_a_folder_of_runs_is_found(first: tuple[Reproduction, Told], root: Path, tmp_path: Path) -> None:
    found = find_outcomes([root / "out"])
    assert len(found) == 6
    assert set(markdown_table(compare(found)).splitlines()) == set(
        markdown_table(compare(first[0].outcomes)).splitlines()
    )
    with pytest.raises(FileNotFoundError, match="holds no run"):
        find_outcomes([tmp_path])


def test_a_plot_of_all_runs(first: tuple[Reproduction, Told], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(tmp_path / "plot.png", compare(first[0].outcomes))
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("task", SMALL + PAPER, ids=lambda task: str(task.name))
@pytest.mark.parametrize("method", METHODS)
def test_every_cell_has_a_recipe(task: Task, method: str) -> None:
    for architecture in (WAV2VEC2, AST):
        if method != "input-prompt" or architecture == AST:
            recipe = read_recipe(find_recipe(task.recipes[architecture]), method)
            assert recipe.method == method
            assert architecture == WAV2VEC2 or recipe.input.mean is not None


@pytest.mark.parametrize("task", SMALL, ids=lambda task: str(task.name))
def test_every_method_has_the_same_budget(task: Task) -> None:
    """Beside what a method trains, only the learning rate may differ."""
    recipes = [read_recipe(find_recipe(task.recipes[AST]), method) for method in METHODS]
    told = [recipe.model_dump(exclude={"method": True, "adapter": True, "optimiser": {"lr"}}) for recipe in recipes]
    assert all(each == told[0] for each in told)


def test_cells_know_their_place() -> None:
    assert Cell(PAPER[0], AST, "ipet", 2, 5).place == Path("esc50/ipet/seed-2-fold-5")
    assert {ModelType.AST: AST, ModelType.WAV2VEC2: WAV2VEC2} == ARCHITECTURES
