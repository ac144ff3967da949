"""`ipet adapters backup | restore | verify`: on a registry's data directory and database, with or without a server."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.connection import fail, progress_bar, told

if TYPE_CHECKING:
    from service.registry.catalogue import Catalogue
    from service.registry.objects import ObjectStore
    from service.settings import Settings

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", envvar="IPET_DATA_DIR", file_okay=False, help="As for `ipet serve`.")
]
DatabaseUrl = Annotated[
    str | None, typer.Option("--database-url", envvar="IPET_DATABASE_URL", help="As for `ipet serve`.")
]


def backup(
    out: Annotated[Path, typer.Argument(metavar="DIR", file_okay=False, help="New directory to write.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Write a whole registry to a directory: files, version numbers, aliases, history. Servers may go on."""
    with _opened(data_dir, database_url) as (catalogue, objects), progress_bar("backing up") as progress:
        from service.backup import transfer

        moved = transfer.back_up(catalogue, objects, out, progress)
    typer.echo(f"{moved.adapters} adapters, {moved.versions} versions in {out}")
    if moved.damaged:
        fail("left out, as they are damaged: " + "; ".join(f"{one}: {why}" for one, why in moved.damaged.items()))


def restore(
    source: Annotated[Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="What backup wrote.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Take over a registry as backup wrote it; running servers see it within a second. Again, it changes nothing."""
    with _opened(data_dir, database_url, may_begin=True) as (catalogue, objects), progress_bar("restoring") as progress:
        from service.backup import transfer

        moved = transfer.restore(catalogue, objects, source, progress)
    typer.echo(f"{moved.adapters} adapters: {moved.versions} versions restored, {moved.skipped} were there")


def verify(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Read every file of the registry and compare it with its digest; exit with 1 where one is damaged.

    A config that is damaged is put back from the catalogue; weights that are damaged are not served, and come
    back when the same bundle is pushed again.
    """
    with _opened(data_dir, database_url) as (catalogue, objects), progress_bar("reading") as progress:
        with catalogue.read() as transaction:
            rows = [row for adapter in transaction.adapters() for row in adapter.versions]
        report = objects.inspect(_counted(rows, progress), thorough=True)
        orphans = list(objects.orphans({row.digest for row in rows}))
    damaged = [(row, report.damaged[row.digest]) for row in rows if row.digest in report.damaged]
    for row, reason in damaged:
        typer.echo(f"{row.name}@{row.version}\t{reason}")
    typer.echo(
        f"{report.versions} versions: {len(damaged)} damaged, {len(report.repaired)} configs put back; "
        f"{len(orphans)} directories that no version refers to (removed when the server starts)"
    )
    if damaged:
        raise typer.Exit(1)


def settings_of(data_dir: Path | None, database_url: str | None, **more: Any) -> "Settings":
    """The settings of the service whose registry this is. Raises ValueError."""
    from service.settings import Settings

    given: dict[str, Any] = {"data_dir": data_dir, "database_url": database_url, **more}
    return Settings(**{name: value for name, value in given.items() if value is not None})


@contextmanager
def _opened(
    data_dir: Path | None, database_url: str | None, *, may_begin: bool = False
) -> Iterator[tuple["Catalogue", "ObjectStore"]]:
    """A registry at rest; what is wrong, one that is not there too, is told in one line and ends the command with 1."""
    from service.database import database_of
    from service.errors import InvalidRequest
    from service.registry.catalogue import catalogue_of
    from service.registry.objects import OBJECTS, ObjectStore

    with told():
        settings = settings_of(data_dir, database_url)
        if not may_begin:
            database_of(settings.data_dir, settings.database_url).require_begun()
            if not (settings.data_dir / OBJECTS).is_dir():
                raise InvalidRequest(f"there are no adapters in {settings.data_dir.resolve()}")
        catalogue = catalogue_of(settings.data_dir, settings.database_url)
        objects = ObjectStore(settings.data_dir)
        objects.belong_to(catalogue.identity)
        try:
            yield catalogue, objects
        finally:
            objects.quarantine.close()


def _counted(rows: list[Any], progress: Callable[[int, int], None]) -> Iterator[Any]:
    for number, row in enumerate(rows, start=1):
        yield row
        progress(number, len(rows))
