"""Commands over many training runs: compare them (`report`), or train all folds."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import fail, print_json, told

if TYPE_CHECKING:
    from service.training.recipe import Recipe


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="DIR...", exists=True, file_okay=False, help="Runs, or folders of runs.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a Markdown table.")] = False,
) -> None:
    """Compare finished training runs in one table; runs that differ only in seed or fold are one line."""
    with told():
        from service.training.comparison import compare, find_outcomes, markdown_table

        entries = compare(find_outcomes(runs))
        if not entries:
            fail("none of these runs has measured its report part")
    if as_json:
        print_json([asdict(entry) for entry in entries])
    else:
        typer.echo(markdown_table(entries))


def train_folds(recipe: "Recipe", out: Path, run: Callable[["Recipe", Path], None]) -> None:
    """Train every fold into `out/fold-<n>`, and print the table of their mean and spread; what is finished stays."""
    from service.training.comparison import compare, markdown_table
    from service.training.folds import fold_recipes
    from service.training.outcome import read_outcome

    recipes = {out / f"fold-{fold}": each for fold, each in fold_recipes(recipe).items()}
    for place, each in recipes.items():
        run(each, place)
    outcomes = [read_outcome(place) for place in recipes]
    typer.echo(markdown_table(compare(outcomes)))
    for outcome in outcomes:
        told_figures = ", ".join(f"{each.figure} {each.value:.3f}" for each in outcome.headlines())
        typer.echo(f"{outcome.directory.name}: {told_figures}")
