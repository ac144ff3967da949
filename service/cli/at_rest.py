"""Commands on a service's data directory and database, whether it runs or not: `adapters backup | restore | verify`,
`speakers rekey`.
"""

from collections.abc import Iterator
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
Objects = Annotated[str | None, typer.Option("--objects", envvar="IPET_OBJECTS", help="As for `ipet serve`.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--voiceprint-key-file",
        envvar="IPET_VOICEPRINT_KEY_FILE",
        help="As for `ipet serve`, which takes IPET_VOICEPRINT_KEYS too.",
    ),
]


def backup(
    out: Annotated[Path, typer.Argument(metavar="DIR", file_okay=False, help="New directory to write.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    objects_url: Objects = None,
) -> None:
    """Write a whole registry to a directory: files, version numbers, aliases, history. Servers may go on."""
    with _opened(data_dir, database_url, objects_url) as (catalogue, objects), progress_bar("backing up") as progress:
        from service.backup import transfer

        moved = transfer.back_up(catalogue, objects, out, progress)
    typer.echo(f"{moved.adapters} adapters, {moved.versions} versions in {out}")
    if moved.damaged:
        fail("left out, as they are damaged: " + "; ".join(f"{one}: {why}" for one, why in moved.damaged.items()))


def restore(
    source: Annotated[Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="What backup wrote.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    objects_url: Objects = None,
) -> None:
    """Take over a registry as backup wrote it; running servers see it within a second. Again, it changes nothing."""
    opened = _opened(data_dir, database_url, objects_url, may_begin=True)
    with opened as (catalogue, objects), progress_bar("restoring") as progress:
        from service.backup import transfer

        moved = transfer.restore(catalogue, objects, source, progress)
    typer.echo(f"{moved.adapters} adapters: {moved.versions} versions restored, {moved.skipped} were there")


def verify(data_dir: DataDir = None, database_url: DatabaseUrl = None, objects_url: Objects = None) -> None:
    """Read every file of the registry and compare it with its digest; exit with 1 where one is damaged.

    A config that is damaged is put back from the catalogue; weights that are damaged are not served, and come
    back when the same bundle is pushed again.
    """
    with _opened(data_dir, database_url, objects_url) as (catalogue, objects), progress_bar("reading") as progress:
        with catalogue.read() as transaction:
            rows = [row for adapter in transaction.adapters() for row in adapter.versions]
        damaged, put_back = [], 0
        for number, row in enumerate(rows, start=1):
            if fault := objects.verify(row, thorough=True):
                damaged.append(f"{row.name}@{row.version}\t{fault}")
            else:
                put_back += objects is objects.local and objects.local.restore_config(row, thorough=True)
            progress(number, len(rows))
        orphans = objects.sizes().keys() - {row.digest for row in rows}
    for line in damaged:
        typer.echo(line)
    typer.echo(
        f"{len(rows)} versions: {len(damaged)} damaged, {put_back} configs put back; "
        f"{len(orphans)} directories that no version refers to (removed when the server starts)"
    )
    if damaged:
        raise typer.Exit(1)


def rekey(key_file: KeyFile = None, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Encrypt every stored voiceprint anew under the first key given; servers may run, with both keys, meanwhile.

    Sealed voiceprints that callers keep are not among them: a server opens those with the key that sealed them only.
    """
    from service.database import database_of
    from service.speakers.store import open_speakers

    with told():
        settings = settings_of(data_dir, database_url, voiceprint_key_file=key_file)
        database_of(settings.data_dir, settings.database_url).require_begun()
        store = open_speakers(settings)
        try:
            count = store.rewrite()
        finally:
            store.close()
    typer.echo(f"{count} voiceprints encrypted anew; older keys open none that is stored any more")
    typer.echo(
        "sealed voiceprints that callers keep open with the key that sealed them only: keep it behind the new one"
    )


def settings_of(data_dir: Path | None, database_url: str | None, **more: Any) -> "Settings":
    """The settings of the service whose data these are. Raises ValueError."""
    from service.settings import Settings

    given: dict[str, Any] = {"data_dir": data_dir, "database_url": database_url, **more}
    return Settings(**{name: value for name, value in given.items() if value is not None})


@contextmanager
def _opened(
    data_dir: Path | None, database_url: str | None, objects_url: str | None, *, may_begin: bool = False
) -> Iterator[tuple["Catalogue", "ObjectStore"]]:
    """A registry at rest; what is wrong, one that is not there too, is told in one line and ends the command with 1."""
    from service.database import database_of
    from service.errors import InvalidRequest
    from service.registry.bucket import is_url, open_objects
    from service.registry.catalogue import catalogue_of
    from service.registry.objects import OBJECTS

    with told():
        settings = settings_of(data_dir, database_url, objects=objects_url)
        if not may_begin:
            database_of(settings.data_dir, settings.database_url).require_begun()
            place = Path(settings.objects or settings.data_dir)
            if not (is_url(settings.objects) or (place / OBJECTS).is_dir()):
                raise InvalidRequest(f"there are no adapters in {place.resolve()}")
        catalogue = catalogue_of(settings.data_dir, settings.database_url)
        objects = open_objects(settings.data_dir, settings.objects, settings.objects_cache_mb * 2**20)
        objects.belong_to(catalogue.identity)
        try:
            yield catalogue, objects
        finally:
            objects.local.quarantine.close()
