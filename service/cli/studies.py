"""Commands over many training runs: compare them (`report`), train a table of them (`reproduce`), or all folds."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import fail, print_json, told

if TYPE_CHECKING:
    from service.training.comparison import Entry
    from service.training.recipe import Recipe
    from service.training.reproduction import Cell, Reproduction

PAGE, PICTURE = "COMPARISON.md", "comparison.png"


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="DIR...", exists=True, file_okay=False, help="Runs, or folders of runs.")
    ],
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="PNG to draw the figures into.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a Markdown table.")] = False,
) -> None:
    """Compare finished training runs in one table; runs that differ only in seed or fold are one line."""
    with told():
        from service.training.comparison import as_json as plain
        from service.training.comparison import compare, draw, find_outcomes, markdown_table

        entries = compare(find_outcomes(runs))
        if not entries:
            fail("none of these runs has measured its report part")
        if out is not None:
            draw(out, entries)
    if as_json:
        print_json(plain(entries))
    else:
        typer.echo(markdown_table(entries))


def reproduce(
    data: Annotated[Path, typer.Option("--data", exists=True, file_okay=False, help="Folder of the data sets.")],
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Directory of the runs.")],
    small: Annotated[bool, typer.Option("--small", help="Every method on small data sets and backbones.")] = False,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's table, where its data and weights are.")] = False,
    ast: Annotated[
        str | None, typer.Option(help="AST to use instead of the recipes' own; --small leaves AST out without it.")
    ] = None,
    wav2vec2: Annotated[str | None, typer.Option(help="wav2vec 2.0 to use instead of the recipes' own.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each cell, with seeds from 1.")] = 1,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods; may be repeated.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks; may be repeated.")] = None,
    page: Annotated[
        Path | None, typer.Option(dir_okay=False, help=f"Markdown file to write; OUT/{PAGE} unless given.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that make examples ahead.")] = 0,
) -> None:
    """Train a table of methods, tasks and backbones, and write it with intervals; goes on where it stopped.

    The page is written anew after every cell. Cells whose data or weights are missing are listed with the reason.
    """
    if small == paper:
        fail("say --small or --paper")
    with told():
        from service.training.methods import COMPARED
        from service.training.reproduction import AST, PAPER, SMALL, WAV2VEC2, Study

        tasks = PAPER if paper else SMALL
        _check("method", method, COMPARED)
        _check("task", task, [each.name for each in tasks])
        backbones = {AST: ast, WAV2VEC2: wav2vec2}
        study = Study(
            tasks=[each for each in tasks if not task or each.name in task],
            data=data,
            out=out,
            backbones={architecture: name for architecture, name in backbones.items() if name is not None},
            seeds=range(1, seeds + 1),
            methods=[each for each in COMPARED if not method or each in method],
            device=device,
            dtype=dtype,
            workers=workers,
            architectures=[WAV2VEC2] if small and ast is None else [WAV2VEC2, AST],
        )
        count, done = sum(1 for _ in study.cells()), 0
        command = f"ipet reproduce {'--paper' if paper else '--small'}" + (f" --seeds {seeds}" if seeds > 1 else "")

        def on_cell(cell: "Cell", line: str, so_far: "Reproduction") -> None:
            nonlocal done
            done += 1
            typer.echo(f"[{done}/{count}] {cell}: {line}")
            _write_page(page or out / PAGE, command, paper, so_far)

        study.run(on_cell)
    typer.echo(f"{page or out / PAGE}")


def train_folds(recipe: "Recipe", data: Path, out: Path, run: Callable[["Recipe", Path], None]) -> None:
    """Train every fold and print the table of their mean and spread."""
    from service.training import folds
    from service.training.comparison import compare, markdown_table

    outcomes = folds.train_folds(recipe, data, out, run)
    typer.echo(markdown_table(compare(outcomes)))
    for outcome in outcomes:
        told_figures = ", ".join(f"{each.figure} {each.value:.3f}" for each in outcome.headlines())
        typer.echo(f"{outcome.directory.name}: {told_figures}")


def _write_page(page: Path, command: str, paper: bool, so_far: "Reproduction") -> None:
    import torch

    from service.training.comparison import compare, draw
    from service.training.comparison_page import comparison_page
    from service.training.pictures import can_draw

    entries: list[Entry] = compare(so_far.outcomes)
    picture = PICTURE if entries and can_draw() else None
    page.parent.mkdir(parents=True, exist_ok=True)
    if picture is not None:
        draw(page.parent / picture, entries)
    text = comparison_page(command, paper, entries, so_far.missing, torch.get_num_threads(), picture)
    page.write_text(text, encoding="utf-8")


def _check(what: str, given: list[str] | None, known: "list[str] | tuple[str, ...]") -> None:
    unknown = [each for each in given or () if each not in known]
    if unknown:
        fail(f"--{what} {unknown[0]!r} is not known; use {', '.join(known)}")
