"""The command `ipet`. Each command imports what it needs when it runs, so that `--help` is fast."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from service.cli import adapters, exchange, keys, remote, speakers, studies
from service.cli.connection import print_json, told
from service.cli.serving import serve_command

app = typer.Typer(
    name="ipet",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve_command())


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"ipet-serve {version('ipet-serve')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version, and exit.")
    ] = False,
) -> None:
    """One frozen audio backbone, many IPET adapters: serve them, train them, ask them."""


RecipeName = Annotated[str, typer.Argument(help="Recipe: a TOML file, or the name of one that ships.")]
RecipePath = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Recipe, TOML.")]
DataPath = Annotated[Path, typer.Option("--data", exists=True, file_okay=False, help="Directory of the recordings.")]
OutPath = Annotated[Path, typer.Option("--out", file_okay=False, help="Directory to write; made if need be.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]


def _list_recipes(asked: bool) -> None:
    if asked:
        from service.training.shipped import recipe_table

        typer.echo(recipe_table())
        raise typer.Exit


@app.command()
def train(
    recipe: RecipeName,
    data: DataPath,
    out: OutPath,
    method: Annotated[
        str | None,
        typer.Option(help="Instead of the recipe's: ipet, prompt, adapter, input-prompt, linear or full."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    report: Annotated[bool, typer.Option(help="Measure the validation split when all is chosen.")] = True,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that make examples ahead; by default one a core but one.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(file_okay=False, help="Directory for decoded recordings and features.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of going on from a checkpoint.")] = False,
    folds: Annotated[
        bool, typer.Option("--folds", help="ESC: a run for each fold as the report part, into OUT/fold-<n>.")
    ] = False,
    recipe_list: Annotated[
        bool, typer.Option("--recipe-list", is_eager=True, callback=_list_recipes, help="Show what ships, and exit.")
    ] = False,
) -> None:
    """Train an adapter by a recipe; leaves a bundle with its model card and figures.

    Goes on where it was interrupted. For several GPUs: accelerate launch -m service train ...
    """
    with told():
        from service.training.loader import default_workers
        from service.training.loop import train as run
        from service.training.recipe import Recipe, read_recipe
        from service.training.shipped import find_recipe

        def run_one(recipe: Recipe, out: Path) -> None:
            run(
                recipe,
                data,
                out,
                device=device,
                dtype=dtype,
                report=report,
                workers=default_workers() if workers is None else workers,
                cache=cache,
                fresh=fresh,
            )
            typer.echo(f"{recipe.name} in {out}")

        read = read_recipe(find_recipe(recipe), method)
        if folds:
            studies.train_folds(read, data, out, run_one)
        else:
            run_one(read, out)


@app.command("norm-stats")
def norm_stats(recipe: RecipeName, data: DataPath) -> None:
    """Mean and standard deviation of a data set's filter bank, as the `[input]` table of an AST recipe wants them."""
    with told():
        from service.training.norm_stats import norm_stats as run
        from service.training.recipe import read_recipe
        from service.training.shipped import find_recipe

        stats = run(read_recipe(find_recipe(recipe)), data)
    typer.echo(f"mean = {stats.mean:.7g}\nstd = {stats.std:.7g}")
    typer.echo(f"of {stats.clips} clips of the training part, {stats.skipped} skipped", err=True)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Directory of the bundle.")],
    data: DataPath,
    backbone: Annotated[str, typer.Option(help="As for `ipet serve`.")] = "embedded",
    device: Device = "auto",
    dtype: Dtype = "auto",
    weights: Annotated[
        Literal["auto", "int8"], typer.Option(help="As for `ipet serve`: int8 shows what 8-bit weights cost.")
    ] = "auto",
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Replicates behind the confidence intervals; 0 for none.")
    ] = 1000,
) -> None:
    """Measure a bundle on its validation split; prints JSON (accuracy and mAP, or EER and minDCF)."""
    with told():
        from service.training.evaluate import evaluate as run

        print_json(run(bundle, data, backbone, device=device, dtype=dtype, weights=weights, bootstrap=bootstrap))


@app.command()
def pretrain(
    recipe: RecipePath,
    audio: Annotated[
        list[Path], typer.Option("--audio", exists=True, file_okay=False, help="Folder of audio; may be repeated.")
    ],
    out: OutPath,
    device: Device = "auto",
    cache: Annotated[
        Path | None, typer.Option(file_okay=False, help="Directory for decoded recordings and what teachers say.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of going on from a checkpoint.")] = False,
) -> None:
    """Pre-train a backbone on audio without labels; leaves a Hugging Face directory. Goes on from where it stopped."""
    with told():
        from service.training.pretrain import pretrain as run

        run(recipe, audio, out, device, cache, fresh)


app.command()(studies.report)
app.command()(studies.reproduce)
app.command()(remote.classify)
app.command()(remote.embed)
app.command()(remote.verify)
app.command("import")(exchange.import_)
app.command()(exchange.export)
app.add_typer(adapters.app, name="adapters")
app.add_typer(keys.app, name="keys")
app.add_typer(speakers.app, name="speakers")
