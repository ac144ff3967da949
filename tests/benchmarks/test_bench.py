"""The benchmark on tiny backbones: contestants agree, turns are fair, results come back from JSON and documents."""

import io
import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoConfig

from service.model.spec import ModelType
from tests.benchmarks import families
from tests.benchmarks.__main__ import main, run
from tests.benchmarks.contestants import AUTHORS, BARE, ENGINE, REQUESTS, SWAP_EACH, SWAP_SORTED, Contestant
from tests.benchmarks.document import DOCUMENT, with_results
from tests.benchmarks.geometry import Cell, bare_flops
from tests.benchmarks.measure import measure
from tests.benchmarks.plan import COMPARED, Plan, read_plan
from tests.benchmarks.plots import draw
from tests.benchmarks.results import Results, describe_machine, failures, read_json, write_json
from tests.benchmarks.table import WIDTH, show
from tests.benchmarks.timing import Spread, ratios, take_turns

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module", params=COMPARED)
def results(request: pytest.FixtureRequest) -> Results:
    """One cell on a tiny backbone, one round."""
    short = {ModelType.AST: "ast", ModelType.WAV2VEC2: "wav2vec2"}[request.param]
    directory: Path = request.getfixturevalue(f"tiny_{short}_dir")
    cell = Cell(request.param, 1.28)
    plan = Plan(torch.device("cpu"), (cell,), batch=3, counts=(1, 3, 4), whole=True, budget=0.0, at_least=1, tiny=True)
    found = Results(describe_machine(plan.device))
    with torch.inference_mode():
        measure(cell, directory, plan, found)
    return found


def test_everyone_takes_part_and_agrees(results: Results) -> None:
    assert failures(results.agreements) == []
    forms = (AUTHORS, SWAP_EACH, SWAP_SORTED, BARE, "PEFT LoRA mixed", ENGINE, REQUESTS)
    names = [row.contestant for row in results.rows]
    assert len(set(names)) == len(names)
    for form in forms:
        assert any(name.startswith(f"{form}, ") for name in names), form
    compared = {agreement.name for agreement in results.agreements}
    assert {name for name in names if name.startswith(ENGINE)} <= compared
    assert [goal.what for goal in results.goals] == [f"mixed : {x}" for x in ("one adapter", BARE, AUTHORS)]


def test_results_are_shown_drawn_and_documented(results: Results, tmp_path: Path) -> None:
    write_json(results, tmp_path / "bench.json")
    again = read_json(tmp_path / "bench.json")
    assert again == results
    console = Console(width=WIDTH, record=True)
    show(again, console)
    text = console.export_text()
    assert all(row.contestant in text for row in results.rows)
    assert all(path.stat().st_size > 1000 for path in draw(again, tmp_path))
    document = with_results((ROOT / DOCUMENT).read_text(), again)
    assert all(f"| {row.contestant} | {row.milliseconds:.1f} |" in document for row in results.rows)
    assert with_results(document, again) == document


def test_a_device_without_a_place_in_the_document_is_refused(results: Results) -> None:
    with pytest.raises(ValueError, match="bench cpu"):
        with_results("no marks", results)


def test_flops_are_those_of_the_formula(tiny_ast_dir: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_ast_dir)
    found = bare_flops(Cell(ModelType.AST, 1.28), tiny_ast_dir)
    patches, width, inner = 8 * 12, config.hidden_size, config.intermediate_size
    tokens = 2 + patches
    linear, attention = 2 * tokens * (4 * width**2 + 2 * width * inner), 4 * tokens**2 * width
    assert found == config.num_hidden_layers * (linear + attention) + 2 * patches * config.patch_size**2 * width


def test_plan_is_what_the_command_line_asks_for() -> None:
    plan = read_plan(["--device", "cpu"])
    assert [cell.name for cell in plan.cells] == [
        "AST 1.28 s",
        "AST 5.12 s",
        "wav2vec 2.0 1.28 s",
        "wav2vec 2.0 5.12 s",
    ]
    assert (plan.counts, plan.deadline) == ((1, 8), 600.0)
    assert [(plan.at(cell).batch, plan.at(cell).counts) for cell in plan.cells] == [(8, (1, 8)), (4, (1, 4))] * 2
    whole = read_plan(["--device", "cpu", "--full", "--model", "wav2vec2", "--seconds", "3", "--slots", "64"])
    assert [cell.name for cell in whole.cells] == ["wav2vec 2.0 3 s"]
    assert (whole.counts, whole.slots, whole.deadline) == ((1, 8, 32), 64, math.inf)
    assert whole.at(whole.cells[0]) == whole


def test_every_cell_is_told_as_soon_as_it_is_done(tmp_path: Path) -> None:
    """Without a terminal too: a line for each cell, and what is found so far in the JSON."""
    arguments = ["--device", "cpu", "--tiny", "--model", "wav2vec2", "--seconds", "1.28", "3", "--out", str(tmp_path)]
    seen: list[tuple[str, int]] = []  # each line, and how many cells the JSON had by then

    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            seen.extend((line, len(read_json(tmp_path / "bench.json").cells)) for line in text.splitlines() if line)
            return len(text)

    run(read_plan(arguments), Console(file=Pipe(), width=WIDTH))
    assert [(line.partition(":")[0], cells) for line, cells in seen] == [
        ("[1/2] wav2vec 2.0 1.28 s", 1),
        ("[2/2] wav2vec 2.0 3 s", 2),
    ]
    assert "mixed : bare backbone" in seen[0][0]


def test_a_run_keeps_its_deadline_and_tells_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calls of 1 s would take a cell 25 s and more; it is given up between two of them."""
    run_one = Contestant.__init__

    def slow(self: Contestant, form: str, dtype: str, adapters: int, clips: int, run: Callable[[], Tensor]) -> None:
        run_one(self, form, dtype, adapters, clips, lambda: (time.sleep(1.0), run())[1])

    arguments = ["--device", "cpu", "--tiny", "--model", "wav2vec2", "--seconds", "1.28", "3", "--out", str(tmp_path)]
    monkeypatch.setattr(Contestant, "__init__", slow)
    began = time.monotonic()
    assert main([*arguments, "--deadline", "1.5"]) == 0
    assert time.monotonic() - began < 12  # it would take three times as long
    found = read_json(tmp_path / "bench.json")
    assert found.left_out == ["wav2vec 2.0 1.28 s", "wav2vec 2.0 3 s"]
    assert [found.rows, found.agreements, found.noise] == [[], [], {}]
    assert capsys.readouterr().out.count("left out, as the time") == 3


def test_turns_alternate_and_are_as_many() -> None:
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    taken = take_turns(runs, seconds=0.0, at_least=4, at_most=4)
    assert "".join(order) == "abcbacbcacba"
    assert all(len(times) == 4 for times in taken.values())


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([2.0, 20.0, 4.0], [1.0, 10.0, 2.0]) == Spread(2.0, 2.0, 2.0)


@pytest.mark.parametrize(("what", "goals"), [("mixed", 1), ("peft", 4), ("odd", 2)])
def test_families_agree_before_they_are_timed(
    what: str, goals: int, tiny_wav2vec2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.inference_mode():
        bench = families.Bench(tiny_wav2vec2_dir, Cell(ModelType.WAV2VEC2, 1.28), "float32")
        assert len(families.measure(what, bench, budget=0.0, at_least=1)) == goals
    assert (tmp_path / "runs/bench" / f"families-{what}-wav2vec2.json").exists()
