"""The command `ipet`. Each command imports what it needs when it runs, so that `--help` is fast."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from service.cli import adapters, keys, remote
from service.cli.connection import fail, print_json
from service.cli.serving import serve_command

app = typer.Typer(
    name="ipet",
    help="One frozen audio backbone, many IPET adapters: serve them, train them, ask them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve_command())

RecipePath = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Recipe, TOML.")]
DataPath = Annotated[Path, typer.Option("--data", exists=True, file_okay=False, help="Directory of the recordings.")]
OutPath = Annotated[Path, typer.Option("--out", file_okay=False, help="Directory to write; made if need be.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a recipe, a bundle or the recordings is told in one line and ends the command with 1."""
    from service.errors import ServiceError

    try:
        yield
    except (ServiceError, ValueError, OSError, RuntimeError) as error:
        fail(str(error) or type(error).__name__)


@app.command()
def train(
    recipe: RecipePath,
    data: DataPath,
    out: OutPath,
    device: Device = "auto",
    dtype: Dtype = "auto",
    report: Annotated[bool, typer.Option(help="Measure the validation split when all is chosen.")] = True,
) -> None:
    """Train an adapter by a recipe; leaves a bundle with its model card and figures."""
    with _told():
        from service.training.loop import train as run

        result = run(recipe, data, out, device=device, dtype=dtype, report=report)
    typer.echo(f"{result.manifest.name} in {out}")


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Directory of the bundle.")],
    data: DataPath,
    backbone: Annotated[str, typer.Option(help="As for `ipet serve`.")] = "embedded",
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Measure a bundle on its validation split; prints JSON (accuracy, or EER and minDCF)."""
    with _told():
        from service.training.evaluate import evaluate as run

        print_json(run(bundle, data, backbone, device=device, dtype=dtype))


@app.command()
def pretrain(recipe: RecipePath, data: DataPath, out: OutPath) -> None:
    """Pre-train a backbone by a recipe; leaves a Hugging Face directory. Goes on from where it stopped."""
    with _told():
        from service.training.pretrain import pretrain as run

        run(recipe, data, out)


app.command()(remote.classify)
app.command()(remote.embed)
app.command()(remote.verify)
app.add_typer(adapters.app, name="adapters")
app.add_typer(keys.app, name="keys")
