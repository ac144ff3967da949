"""Content-addressed bundles on disk: one directory for each digest, published by one rename. Knows no names.

objects/<sha256>/adapter_config.json, adapter_model.safetensors, README.md
incoming/<random>/     what is being written or removed; swept at start
"""

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import Internal, InvalidBundle, StorageFull
from service.registry.bundle import CARD_FILE, BundleFiles, read_bundle, sync_directory
from service.registry.manifest import CONFIG_FILE
from service.registry.tensor_header import WEIGHTS_FILE

HEADROOM_BYTES = 8 * 2**20  # left free by uploads, so that a full disk still lets the catalogue delete

_logger = logging.getLogger(__name__)


class ObjectStore:
    """Files of bundles. Callers see to it that one writer runs at a time."""

    def __init__(self, root: Path) -> None:
        self._objects = root / "objects"
        self._incoming = root / "incoming"
        with _storage():
            self._objects.mkdir(parents=True, exist_ok=True)
            self._incoming.mkdir(exist_ok=True)
            sync_directory(root)

    def directory(self, digest: str) -> Path:
        """Where the bundle of a digest lies, or would."""
        return self._objects / digest.removeprefix("sha256:")

    def put(self, files: BundleFiles) -> None:
        """Write a bundle durably, in the place of whatever lies there.

        Raises:
            StorageFull: no room; nothing is left behind.
        """
        with _storage():
            size = len(files.config) + len(files.weights) + len(files.card or b"")
            if shutil.disk_usage(self._incoming).free < size + HEADROOM_BYTES:
                raise StorageFull(f"the disk of the data directory has no room for another {size:,} bytes")
            staging = Path(tempfile.mkdtemp(dir=self._incoming))
            try:
                self._write(staging, files)
                self.remove(files.digest)
                staging.rename(self.directory(files.digest))
                sync_directory(self._objects)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise

    def holds(self, files: BundleFiles) -> bool:
        """Whether the bundle lies there undamaged."""
        try:
            return read_bundle(self.directory(files.digest)).digest == files.digest
        except InvalidBundle:
            return False

    def remove(self, digest: str) -> None:
        """Remove a bundle in one step, if it is there."""
        with _storage():
            trash = Path(tempfile.mkdtemp(dir=self._incoming))
            try:
                self.directory(digest).rename(trash / "bundle")
            except FileNotFoundError:
                pass
            finally:
                shutil.rmtree(trash, ignore_errors=True)

    def sweep(self, referenced: set[str]) -> None:
        """Remove what an interrupted upload or deletion left behind."""
        with _storage():
            for leftover in self._incoming.iterdir():
                shutil.rmtree(leftover, ignore_errors=True)
            known = {self.directory(digest) for digest in referenced}
            for directory in self._objects.iterdir():
                if directory not in known:
                    _logger.info("removing %s, which no version refers to", directory.name)
                    self.remove(directory.name)

    def _write(self, directory: Path, files: BundleFiles) -> None:
        parts = {CONFIG_FILE: files.config, WEIGHTS_FILE: files.weights, CARD_FILE: files.card}
        for name, content in parts.items():
            if content is None:
                continue
            with (directory / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        directory.chmod(0o755)  # mkdtemp's directories are private
        sync_directory(directory)


@contextmanager
def _storage() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull(f"the disk of the data directory is full: {error.strerror}") from error
        raise Internal(f"the registry's files failed: {error}") from error
