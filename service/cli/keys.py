"""`ipet keys`: who may use a service. Works on its database; a running server sees what changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.at_rest import DatabaseUrl, DataDir, settings_of
from service.cli.connection import print_table, told

if TYPE_CHECKING:
    from service.access.key_table import KeyTable
    from service.access.keys import Key

app = typer.Typer(
    help="Make, list and revoke the keys of a service; a running server follows within a second.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
ListAsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(
    scopes: Annotated[str, typer.Option(help="Comma-separated: infer, read, write, speakers, identify, admin (all).")],
    adapters: Annotated[
        list[str] | None,
        typer.Option(help="Names or patterns ('acme-*') of the only adapters that the key sees; may be repeated."),
    ] = None,
    name: Annotated[str, typer.Option(help="A label for people.")] = "",
    expires: Annotated[str | None, typer.Option(help="How long it lasts: 12h, 30d, 8w; for ever without it.")] = None,
    rate: Annotated[str | None, typer.Option(help="Most requests: 10/s, 600/m, 1000/h.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Most requests in flight.")] = None,
    domain: Annotated[str, typer.Option(help="Whose quota its uploads count to.")] = "default",
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a key. It is printed once, alone on standard output, and stored nowhere: only its digest is.

    Where there is no registry yet, it begins one.
    """
    from service.access.keys import Grant, Rate, parse_lifetime, parse_patterns, parse_scopes, require_key_name

    with told():
        require_key_name(name)
        grant = Grant(
            scopes=parse_scopes(scopes),
            adapters=parse_patterns(adapters or ()),
            rate=None if rate is None else Rate.parse(rate),
            concurrency=concurrency,
            expires=None if expires is None else datetime.now(UTC) + parse_lifetime(expires),
            domain=domain,
        )
        with _keys(data_dir, database_url, may_begin=True) as table:
            key, token = table.create(name, grant)
    typer.echo(f"key {key.id} may {_scopes(key)}; keep what follows, it is not shown again:", err=True)
    typer.echo(str(token))


@app.command("list")
def list_keys(as_json: ListAsJson = False, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Show every key, the revoked and expired ones too; never their secrets."""
    with told(), _keys(data_dir, database_url) as table:
        keys = table.all_keys()
    columns = ["id", "name", "scopes", "adapters", "limits", "created", "expires", "state", "domain"]
    print_table(columns, [_as_row(key) for key in keys], [_as_json(key) for key in keys] if as_json else None)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `ipet keys list` shows it.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """End a key for good."""
    with told(), _keys(data_dir, database_url) as table:
        table.revoke(key_id)
    typer.echo(f"revoked {key_id}")


@contextmanager
def _keys(data_dir: Path | None, database_url: str | None, *, may_begin: bool = False) -> Iterator["KeyTable"]:
    """The keys of one service. Raises InvalidRequest where there is no registry, unless one may be begun."""
    from service.access.key_table import KeyTable
    from service.database import database_of, open_database

    settings = settings_of(data_dir, database_url)
    database = database_of(settings.data_dir, settings.database_url)
    if not may_begin:
        database.require_begun()
    elif not database.is_begun():
        typer.echo(f"there was no registry: a new one begins in {database}", err=True)
    table = KeyTable(open_database(settings.data_dir, settings.database_url))
    try:
        yield table
    finally:
        table.close()


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
        grant.domain,
    ]


def _as_json(key: "Key") -> dict[str, object]:
    grant = key.grant
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(grant.scopes),
        "adapters": list(grant.adapters),
        "domain": grant.domain,
        "rate": str(grant.rate) if grant.rate else None,
        "concurrency": grant.concurrency,
        "created": key.created.isoformat(),
        "expires": grant.expires.isoformat() if grant.expires else None,
        "revoked": key.revoked.isoformat() if key.revoked else None,
        "state": key.state(datetime.now(UTC)),
    }
