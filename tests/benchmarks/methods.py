"""Trains and prints the table of methods by tasks, every cell an ordinary run of a recipe in `adapters/recipes/small`.

`python -m tests.benchmarks.methods --data DIR --out DIR`; DIR holds `esc10`, `arabic-speech-commands`, `fsdd`,
`speechocean762-sv` and `music`. Goes on where it stopped; a cell whose data are missing is told with the reason.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from service.errors import ServiceError
from service.training.comparison import compare, markdown_table
from service.training.loop import train
from service.training.methods import METHODS
from service.training.outcome import Outcome, read_outcome
from service.training.recipe import read_recipe
from service.training.shipped import find_recipe

TASKS = {  # folder of the recordings, below the data folder
    "sound-events": "esc10",
    "keywords": "arabic-speech-commands",
    "digits": "fsdd",
    "speaker": "speechocean762-sv",
    "music-style": "music",  # `python -m tests.music DIR/music` makes it
}
COMPARED = ("ipet", "prompt", "adapter", "linear", "full")  # those of the paper's tables, but for AST's own


def reproduce(
    data: Path,
    out: Path,
    on_cell: Callable[[str], None],
    *,
    tasks: Sequence[str] = tuple(TASKS),
    methods: Sequence[str] = COMPARED,
    seeds: int = 1,
    backbone: str = "embedded",
    **options: Any,
) -> list[Outcome]:
    """Train what is not finished, all tasks and methods of a seed before the next.

    Args:
        on_cell: hears in a line what came of each cell; of one whose data are not there, or whose run fails, why.
        options: of `train`.
    """
    outcomes = []
    for seed, task, method in ((s, t, m) for s in range(1, seeds + 1) for t in tasks for m in methods):
        place = out / task / method / f"seed-{seed}"
        recipe = read_recipe(find_recipe(f"{task}-small"), method)
        recipe = recipe.model_copy(update={"seed": seed, "name": task, "backbone": backbone})
        try:
            train(recipe, data / TASKS[task], place, cache=out / "cache", **options)
            outcomes.append(read_outcome(place))
            said = ", ".join(f"{each.figure} {each.value:.3f}" for each in outcomes[-1].headlines())
        except (ServiceError, ValueError, OSError, RuntimeError) as error:
            said = (str(error) or type(error).__name__).splitlines()[0]
        on_cell(f"{task}, {method}, seed {seed}: {said}")
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--method", dest="methods", action="append", choices=METHODS)
    parser.add_argument("--task", dest="tasks", action="append", choices=TASKS)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    print(markdown_table(compare(reproduce(given.pop("data"), given.pop("out"), print, **given))))


if __name__ == "__main__":
    main()
