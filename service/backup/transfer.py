"""Backups of whole registries: numbers, aliases, digests and history, not only the newest files.

Both work on a data directory and its database, not through a server: a server's API gives no say in version
numbers, times and history. Servers may run meanwhile; they see what is restored as they see each other's uploads.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sqlalchemy import Connection, insert, select

from service.backup.archive import ARCHIVE_FILE, Archive, ArchivedAdapter, ArchivedEvent, ArchivedVersion, read_archive
from service.errors import InvalidBundle, InvalidRequest
from service.private import DIRECTORY_MODE, replace_file, sync_directory
from service.registry.audit import Event, append, history
from service.registry.bundle import check_weights, read_bundle
from service.registry.catalogue import Catalogue, Transaction
from service.registry.manifest import CONFIG_FILE, parse_manifest
from service.registry.objects import ObjectStore
from service.registry.quarantine import storage
from service.registry.tables import versions

_ALL = 2**31 - 1  # events

Progress = Callable[[int, int], None]  # done, of how many


@dataclass(slots=True)
class Moved:
    """What backing up or restoring did: `damaged` are versions without files, with the reason; `skipped` were there."""

    adapters: int = 0
    versions: int = 0
    skipped: int = 0
    damaged: dict[str, str] = field(default_factory=dict)


def back_up(catalogue: Catalogue, objects: ObjectStore, out: Path, progress: Progress) -> Moved:
    """Write everything that a registry holds to a new directory; its catalogue comes last.

    Raises:
        InvalidRequest: `out` is there and not empty. StorageFull: no room.
    """
    if out.exists() and any(out.iterdir()):
        raise InvalidRequest(f"{out} is not empty; a backup needs a directory of its own")
    with catalogue.read() as transaction:
        found = [_read(transaction, name) for name in transaction.names()]
    moved = Moved(adapters=len(found))
    with storage():
        (out / "objects").mkdir(parents=True, exist_ok=True)
    written: list[ArchivedAdapter] = []
    for number, adapter in enumerate(found):
        kept = [_copy_version(adapter.name, version, objects, out, moved) for version in adapter.versions]
        written.append(adapter.model_copy(update={"versions": tuple(kept)}))
        progress(number + 1, len(found))
    document = Archive(adapters=tuple(written)).model_dump_json(indent=1, exclude_none=True)
    with storage():
        sync_directory(out / "objects")
        replace_file(out / ARCHIVE_FILE, document.encode())
        sync_directory(out)
    return moved


def restore(catalogue: Catalogue, objects: ObjectStore, source: Path, progress: Progress) -> Moved:
    """Take over what a backup holds, one adapter after the other; again, it changes nothing.

    An adapter that is there already gets the versions above its newest and the backup's aliases.

    Raises:
        InvalidRequest: not a backup, or a number means other bytes here; nothing is restored then.
        InvalidBundle: files are missing or damaged. StorageFull: no room. What came before is restored.
    """
    archive = read_archive(source)
    objects.belong_to(catalogue.identity)
    with catalogue.read() as transaction:
        for adapter in archive.adapters:
            _check_numbers(adapter, _known(transaction.connection, adapter.name))
    moved = Moved(adapters=len(archive.adapters))
    for number, adapter in enumerate(archive.adapters):
        _restore_adapter(catalogue, objects, source, adapter, moved)
        progress(number + 1, len(archive.adapters))
    return moved


# Backing up


def _read(transaction: Transaction, name: str) -> ArchivedAdapter:
    """All rows of one adapter, also of a deleted one."""
    connection = transaction.connection
    rows = connection.execute(select(versions).where(versions.c.name == name).order_by(versions.c.version))
    return ArchivedAdapter(
        name=name,
        last_version=transaction.last_version(name),
        aliases=dict(sorted(transaction.adapter(name).aliases.items())),
        versions=tuple(ArchivedVersion.model_construct(**row) for row in rows.mappings()),
        history=tuple(ArchivedEvent.model_construct(**asdict(event)) for event in _events(connection, name)),
    )


def _events(connection: Connection, name: str) -> list[Event]:
    """The oldest first."""
    return history(connection, name, _ALL)[::-1]


def _copy_version(
    name: str, version: ArchivedVersion, objects: ObjectStore, out: Path, moved: Moved
) -> ArchivedVersion:
    if version.deleted is not None:
        return version
    fault = objects.verify(version, thorough=True)
    if fault is not None:
        moved.damaged[f"{name}@{version.version}"] = fault
        return version.model_copy(update={"damaged": fault})
    moved.versions += 1
    target = out / "objects" / version.digest.removeprefix("sha256:")
    if not target.exists():

        def copy(place: Path) -> None:
            for path in place.iterdir():
                shutil.copyfile(path, target / path.name)
            check_weights(target, version)
            place.stat()  # else it was let go, and listed without what had gone by then

        with storage():
            target.mkdir(DIRECTORY_MODE)
            objects.use(version.digest, copy)
            (target / CONFIG_FILE).write_bytes(version.config)
    return version


# Restoring


def _known(connection: Connection, name: str) -> dict[int, str]:
    """Number -> digest of every version that an adapter ever had here."""
    rows = connection.execute(select(versions.c.version, versions.c.digest).where(versions.c.name == name))
    return {row.version: row.digest for row in rows}


def _check_numbers(adapter: ArchivedAdapter, known: dict[int, str]) -> None:
    for version in adapter.versions:
        here = known.get(version.version, version.digest)
        if here != version.digest:
            raise InvalidRequest(
                f"{adapter.name}@{version.version} is {here} here and {version.digest} in the backup; a number "
                "means the same bytes for good, so this backup cannot be restored here"
            )
        parse_manifest(version.config)


def _restore_adapter(
    catalogue: Catalogue, objects: ObjectStore, source: Path, adapter: ArchivedAdapter, moved: Moved
) -> None:
    """Files and rows of one adapter in one step."""
    with catalogue.read() as transaction:
        known = _known(transaction.connection, adapter.name)
    newest = max(known, default=0)
    new = [version for version in adapter.versions if version.version > newest]
    damaged = {f"{adapter.name}@{version.version}": version.damaged for version in new if version.damaged}
    staged: dict[str, Path] = {}
    try:
        for version in new:
            if version.deleted is None and version.damaged is None:
                staged[version.digest] = _stage(objects, source, version)
                objects.send(version.digest, staged[version.digest])
        with catalogue.write() as transaction:
            if _known(transaction.connection, adapter.name) != known:
                raise InvalidRequest(f"{adapter.name} was changed meanwhile; restore again")
            for version in new:
                if version.digest in staged and objects.local.verify(version, thorough=True) is not None:
                    objects.local.publish(version.digest, staged[version.digest])
            _write_adapter(transaction, adapter, new)
    finally:
        for directory in staged.values():
            shutil.rmtree(directory, ignore_errors=True)
    moved.versions += len(staged)
    moved.skipped += len(adapter.versions) - len(new)
    moved.damaged |= damaged


def _stage(objects: ObjectStore, source: Path, version: ArchivedVersion) -> Path:
    files = read_bundle(source / "objects" / version.digest.removeprefix("sha256:"))
    if files.digest != version.digest or files.config != version.config:
        raise InvalidBundle(f"the backup is damaged: {version.digest} has the digest {files.digest}")
    return objects.local.stage(files)


def _write_adapter(transaction: Transaction, adapter: ArchivedAdapter, new: Sequence[ArchivedVersion]) -> None:
    connection, name = transaction.connection, adapter.name
    transaction.count_to(name, max(adapter.last_version, transaction.last_version(name)))
    if new:
        rows = [version.model_dump(exclude={"damaged"}) | {"name": name, "config": version.config} for version in new]
        connection.execute(insert(versions), rows)
    here = transaction.adapter(name)
    there = {row.version for row in here.versions}
    for alias, version in adapter.aliases.items():
        if version in there and here.aliases.get(alias) != version:
            transaction.put_alias(name, alias, version)
    seen = {replace(event, id=None) for event in _events(connection, name)}
    events = [Event(name=name, **event.model_dump()) for event in adapter.history]
    append(connection, [event for event in events if event not in seen])
    transaction.touch(name)
