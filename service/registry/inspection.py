"""Whether the files of versions are what was uploaded: by size at every start, by digest when asked. Knows no SQL."""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from service.errors import StorageFull
from service.registry.bundle import digest_of_hashes, replace_file
from service.registry.catalogue import VersionRow
from service.registry.manifest import CONFIG_FILE
from service.registry.objects import ObjectStore
from service.registry.quarantine import storage
from service.registry.tensor_header import WEIGHTS_FILE

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Report:
    """What an inspection found.

    Args:
        versions: how many were looked at.
        damaged: digest -> what is wrong; these must not be served.
        repaired: digests whose config was written anew from the catalogue.
    """

    versions: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    repaired: list[str] = field(default_factory=list)


def inspect(objects: ObjectStore, rows: Iterable[VersionRow], *, thorough: bool) -> Report:
    """Look at the files of versions; a config that differs from the catalogue's is put back.

    Args:
        thorough: read every byte; else compare sizes.
    """
    report = Report()
    for row in rows:
        report.versions += 1
        fault = _fault(objects, row, thorough)
        if fault is not None:
            _logger.error("%s@%d cannot be served: %s", row.name, row.version, fault)
            report.damaged[row.digest] = fault
        elif _restore_config(objects, row, thorough):
            report.repaired.append(row.digest)
    return report


def _fault(objects: ObjectStore, row: VersionRow, thorough: bool) -> str | None:
    path = objects.directory(row.digest) / WEIGHTS_FILE
    try:
        size = path.stat().st_size
        if size != row.weights_bytes:
            return f"{WEIGHTS_FILE} is damaged: it has {size:,} bytes, {row.weights_bytes:,} were uploaded"
        if not thorough:
            return None
        with path.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return f"{WEIGHTS_FILE} cannot be read: {error.strerror}"
    got = digest_of_hashes(hashlib.sha256(row.config).digest(), weights)
    return None if got == row.digest else f"{WEIGHTS_FILE} is damaged: its digest is {got}, not {row.digest}"


def _restore_config(objects: ObjectStore, row: VersionRow, thorough: bool) -> bool:
    """Put back a config whose file is not what the catalogue has; whether that was needed."""
    path = objects.directory(row.digest) / CONFIG_FILE
    try:
        if path.stat().st_size == len(row.config) and not (thorough and path.read_bytes() != row.config):
            return False
    except OSError:
        pass
    _logger.warning("%s@%d: %s is damaged and is put back", row.name, row.version, CONFIG_FILE)
    try:
        with storage():
            replace_file(path, row.config)
    except StorageFull as error:
        _logger.warning("%s could not be put back: %s", CONFIG_FILE, error.detail)
    return True
