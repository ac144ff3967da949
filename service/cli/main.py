"""The command `ipet`. Each command imports what it needs when it runs, so that `--help` is fast."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from service.cli import adapters, cluster, exchange, keys, recordings, remote, speakers, studies, trials
from service.cli.connection import print_json, progress_bar, told
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
        from service.version import service_version

        typer.echo(f"ipet-serve {service_version()}")
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


def _list_keys(asked: bool) -> None:
    if asked:
        from service.training.shipped import recipe_keys
        from service.training.tables import aligned

        typer.echo(aligned([("key", "default", "meaning"), *recipe_keys()]))
        raise typer.Exit


@app.command()
def train(
    recipe: RecipeName,
    data: DataPath,
    out: OutPath,
    method: Annotated[str | None, typer.Option(help="Instead of the recipe's: ipet, linear, full, lora ...")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Instead of the recipe's; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")] = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    report: Annotated[bool, typer.Option(help="Measure the report part when all is chosen.")] = True,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Threads that make examples ahead; by default one a core but one.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(file_okay=False, help="Directory for decoded recordings and features.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew where there is a checkpoint or a finished run.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write events for TensorBoard to OUT/tensorboard.")
    ] = False,
    folds: Annotated[
        bool, typer.Option("--folds", help="A run for each fold of data.parts as the report part, into OUT/fold-<n>.")
    ] = False,
    recipe_list: Annotated[
        bool, typer.Option("--recipe-list", is_eager=True, callback=_list_recipes, help="Show what ships, and exit.")
    ] = False,
    keys: Annotated[
        bool, typer.Option("--keys", is_eager=True, callback=_list_keys, help="Show a recipe's keys, and exit.")
    ] = False,
) -> None:
    """Train an adapter by a recipe; leaves a bundle with its model card and figures.

    Goes on where it was interrupted. For several GPUs: accelerate launch -m service train ...
    """
    with told():
        from service.training.card import figures_table
        from service.training.loader import default_workers
        from service.training.loop import train as run
        from service.training.recipe import Recipe, read_recipe
        from service.training.shipped import find_recipe

        def run_one(recipe: Recipe, out: Path) -> None:
            threads = default_workers() if workers is None else workers
            options = {"device": device, "dtype": dtype, "report": report, "cache": cache, "fresh": fresh}
            options |= {"tensorboard": tensorboard}
            result = run(recipe, data, out, workers=threads, **options)  # type: ignore[arg-type]
            typer.echo(figures_table(result.metrics, result.manifest.labels or ()))
            said = "was finished before; --fresh trains it anew" if result.again else f"epoch {result.chosen_epoch}"
            typer.echo(f"{recipe.name} in {out}: {said}")

        more = [*(changes or ()), *([] if seed is None else [f"seed={seed}"])]
        read = read_recipe(find_recipe(recipe), method, more)
        if folds:
            studies.train_folds(read, out, run_one)
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
    events: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="CSV of file,start,end,label: event and segment F1 instead."),
    ] = None,
    hop: recordings.Hop = None,
    threshold: recordings.Threshold = None,
    collar: Annotated[float, typer.Option(min=0, help="Seconds that an event's ends may be off by.")] = 0.2,
    segment: Annotated[float, typer.Option(min=0.01, help="Seconds of a segment.")] = 1.0,
) -> None:
    """Measure a bundle on the report part of a data set; prints JSON (accuracy and mAP, or EER and minDCF).

    With --events: on recordings of which the table tells what is heard when.
    """
    if events is not None:
        with told(), progress_bar("listening") as progress:
            from service.training.events import Rules, evaluate_events
            from service.training.inference import open_bundle

            asked, rules = {"hop": hop, "threshold": threshold}, Rules(collar=collar, segment=segment)
            opened, how = open_bundle(bundle, backbone, device, dtype), {"bootstrap": bootstrap, "progress": progress}
            figures = evaluate_events(opened, data, events, asked=asked, rules=rules, **how)  # type: ignore[arg-type]
        print_json(figures)
        return
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
    cache: Annotated[Path | None, typer.Option(file_okay=False, help="Directory for decoded recordings.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of going on from a checkpoint.")] = False,
) -> None:
    """Pre-train a backbone on audio without labels; leaves a Hugging Face directory. Goes on from where it stopped."""
    with told():
        from service.training.pretrain import pretrain as run

        run(recipe, audio, out, device, cache, fresh)


app.command()(studies.report)
app.command()(remote.classify)
app.command()(remote.embed)
app.command()(remote.verify)
app.command()(recordings.events)
app.command()(recordings.soundscapes)
app.command()(trials.calibrate)
app.command()(trials.score)
app.command("import")(exchange.import_)
app.command()(exchange.export)
app.add_typer(adapters.app, name="adapters")
app.add_typer(keys.app, name="keys")
app.add_typer(cluster.app, name="cluster")
app.add_typer(speakers.app, name="speakers")
