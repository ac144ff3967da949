"""`ipet cluster`: several fronts and devices by Ray Serve, on this machine."""

import signal
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from service.cli.connection import told
from service.cli.serving import listen, require_keys

app = typer.Typer(no_args_is_help=True, help="Several fronts and devices, by Ray Serve.")


@app.callback()
def cluster() -> None:
    """Several fronts and devices, by Ray Serve."""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Fronts, devices and settings, TOML; see docs/OPERATIONS.md.")],
) -> None:
    """Serve on this machine until a signal ends it: `fronts` processes that answer, and a process for each device."""
    with told():
        from service.cluster.config import read_config

        plan = read_config(config)
    if find_spec("ray") is None:
        typer.echo("error: Ray is not installed; pip install 'ipet-serve[ray]'", err=True)
        raise typer.Exit(1)
    settings = plan.settings
    require_keys(settings)
    listen(settings.host, settings.port).close()  # a taken port is told before anything is started
    from service.cluster.app import running

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with running(plan):
        where = f"http://{settings.host}:{settings.port}"
        typer.echo(f"ipet-serve is ready on {where}  ({plan.fronts} fronts, {len(plan.devices)} devices)")
        ended.wait()
