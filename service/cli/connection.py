"""How the commands reach a running server, and how they tell what it or this machine refused."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from service.client import Client

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option("--url", envvar="IPET_URL", help="The running service.")]
Key = Annotated[str | None, typer.Option("--key", envvar="IPET_KEY", help="One of its keys, where it asks for one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the service's answer as it came.")]


@contextmanager
def connected(url: str, key: str | None, clips: Sequence[Path] = ()) -> Iterator["Client"]:
    """A client of the service at `url`; what fails is printed in one line and ends the command with 1.

    Args:
        clips: of the one request, in their order: a problem that is one's names it.
    """
    from service.client import Client, ClientError, ConnectionFailed, ProblemError

    with told():
        try:
            with Client(url, key) as client:
                yield client
        except ProblemError as error:
            how = "" if key or error.code != "unauthorized" else " (here: --key, or the variable IPET_KEY)"
            at = error.members.get("clip")
            where = f"{clips[at]}: " if isinstance(at, int) and at < len(clips) else ""
            fail(f"{error.code}: {where}{error.detail}{how}")
        except ConnectionFailed as error:
            fail(f"{error}; is `ipet serve` running there?")
        except ClientError as error:
            fail(str(error))


@contextmanager
def told() -> Iterator[None]:
    """What is wrong with what a command was given is told in one line and ends it with 1."""
    from service.errors import ServiceError

    try:
        yield
    except typer.Exit:  # a RuntimeError too: it has been told
        raise
    except (ServiceError, ValueError, OSError, RuntimeError) as error:
        fail(str(error) or type(error).__name__)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing in a pipe or of nothing."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (what and console.is_terminal)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)


def print_json(answer: object) -> None:
    typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def print_table(columns: list[str], rows: list[list[str]], instead: object = None) -> None:
    """A table on a terminal, tab-separated lines in a pipe; or `instead` as JSON, where it is given."""
    if instead is not None:
        print_json(instead)
        return
    if not sys.stdout.isatty():
        typer.echo("\n".join("\t".join(row) for row in rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="dim")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
