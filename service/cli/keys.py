"""`ipet keys`: who may use a service. Works on its database; a running server sees what changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.connection import fail, print_json, print_table

if TYPE_CHECKING:
    from service.registry.key_table import KeyTable
    from service.registry.keys import Key

app = typer.Typer(
    help="Make, list and revoke the keys of a service; a running server follows within a second.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", envvar="IPET_DATA_DIR", file_okay=False, help="As for `ipet serve`.")
]
ListAsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(
    scopes: Annotated[str, typer.Option(help="Comma-separated: infer, read, write, speakers, admin (all).")],
    adapters: Annotated[
        list[str] | None,
        typer.Option(help="Names or patterns ('acme-*') of the only adapters that the key sees; may be repeated."),
    ] = None,
    name: Annotated[str, typer.Option(help="A label for people.")] = "",
    expires: Annotated[str | None, typer.Option(help="How long it lasts: 12h, 30d, 8w; for ever without it.")] = None,
    rate: Annotated[str | None, typer.Option(help="Most requests: 10/s, 600/m, 1000/h.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Most requests in flight.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key. It is printed once, alone on standard output, and stored nowhere: only its digest is."""
    from service.registry.keys import Grant, Rate, parse_lifetime, parse_patterns, parse_scopes

    with _keys(data_dir) as table:
        grant = Grant(
            scopes=parse_scopes(scopes),
            adapters=parse_patterns(adapters or ()),
            rate=None if rate is None else Rate.parse(rate),
            concurrency=concurrency,
            expires=None if expires is None else datetime.now(UTC) + parse_lifetime(expires),
        )
        key, token = table.create(name, grant)
    typer.echo(f"key {key.id} may {_scopes(key)}; keep what follows, it is not shown again:", err=True)
    typer.echo(str(token))


@app.command("list")
def list_keys(as_json: ListAsJson = False, data_dir: DataDir = None) -> None:
    """Show every key, the revoked and expired ones too; never their secrets."""
    with _keys(data_dir) as table:
        keys = table.all_keys()
    if as_json:
        print_json([_as_json(key) for key in keys])
        return
    columns = ["id", "name", "scopes", "adapters", "limits", "created", "expires", "state"]
    print_table(columns, [_as_row(key) for key in keys])


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `ipet keys list` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """End a key for good."""
    with _keys(data_dir) as table:
        table.revoke(key_id)
    typer.echo(f"revoked {key_id}")


@contextmanager
def _keys(data_dir: Path | None) -> Iterator["KeyTable"]:
    """The keys of one service; what is wrong is told in one line and ends the command with 1."""
    from service.errors import ServiceError
    from service.registry.key_table import KeyTable
    from service.settings import Settings

    given: dict[str, Any] = {} if data_dir is None else {"data_dir": data_dir}
    try:
        with KeyTable.opened(Settings(**given)) as table:
            yield table
    except (ServiceError, ValueError) as error:
        fail(str(error))


def _scopes(key: "Key") -> str:
    return ",".join(sorted(key.grant.scopes))


def _as_row(key: "Key") -> list[str]:
    grant = key.grant
    limits = [str(grant.rate)] if grant.rate else []
    limits += [f"{grant.concurrency} at once"] if grant.concurrency else []
    return [
        key.id,
        key.name,
        _scopes(key),
        ",".join(grant.adapters) or "all",
        ", ".join(limits) or "none",
        key.created.date().isoformat(),
        grant.expires.date().isoformat() if grant.expires else "never",
        key.state(datetime.now(UTC)),
    ]


def _as_json(key: "Key") -> dict[str, object]:
    grant = key.grant
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(grant.scopes),
        "adapters": list(grant.adapters),
        "rate": str(grant.rate) if grant.rate else None,
        "concurrency": grant.concurrency,
        "created": key.created.isoformat(),
        "expires": grant.expires.isoformat() if grant.expires else None,
        "revoked": key.revoked.isoformat() if key.revoked else None,
        "state": key.state(datetime.now(UTC)),
    }
