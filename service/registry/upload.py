"""One bundle on its way in: its parts in any order, each checked, hashed and written while it arrives. Knows no HTTP.

Nothing is read on once it is refused: the config before the weights that follow it, the weights at the length that
they claim for their header, and behind the most that the manifest's tensors may take.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from service.cards import MAX_CARD_BYTES
from service.errors import DeadlineExceeded, InvalidBundle, InvalidRequest
from service.model.adapter import AdapterWeights
from service.private import FILE_MODE, sync_directory
from service.registry.bundle import (
    CARD_FILE,
    LENGTH_BYTES,
    MAX_WEIGHTS_BYTES,
    WEIGHTS_FILE,
    check_header_length,
    digest_of_hashes,
    most_weights_bytes,
    read_weights,
)
from service.registry.fit import Fit
from service.registry.manifest import CONFIG_FILE, MAX_CONFIG_BYTES, Manifest
from service.registry.objects import Directory
from service.registry.quarantine import storage

Convert = Callable[[Path, str], None]  # of a directory, and the adapter's name; raises InvalidBundle
PARTS: Final = {"config": CONFIG_FILE, "weights": WEIGHTS_FILE, "card": CARD_FILE}


class Upload:
    """The parts `config`, `weights` and maybe `card` of a bundle for the adapter `name`. Thread-safe.

    With `convert`, which makes them a bundle where they lie, they are another library's.

    It belongs to whoever received it, until somebody publishes it: from then on to the publisher alone.

    Attributes:
        config: the bytes of `adapter_config.json`.
        sizes: of the parts that have begun, bytes so far.
    """

    def __init__(self, name: str, local: Directory, fit: Fit, convert: Convert | None = None) -> None:
        self.name = name
        self.directory = local.quarantine.new_directory()
        self._require_room = local.require_room
        self.config = b""
        self.sizes: dict[str, int] = {}
        self._fit = fit
        self._convert = convert
        self._manifest: Manifest | None = None
        self._most = {"config": MAX_CONFIG_BYTES, "weights": MAX_WEIGHTS_BYTES, "card": MAX_CARD_BYTES}
        self._start = b""  # of the weights
        self._files: dict[str, BinaryIO] = {}
        self._hashes = {part: hashlib.sha256() for part in PARTS}
        self._lock = threading.Lock()
        self._is_published = False
        self._is_gone = False

    @property
    def digest(self) -> str:
        """Of the config and the weights written so far."""
        return digest_of_hashes(self._hashes["config"].digest(), self._hashes["weights"].digest())

    @property
    def digest_with_card(self) -> str:
        """Of all three files."""
        return f"sha256:{hashlib.sha256(b''.join(one.digest() for one in self._hashes.values())).hexdigest()}"

    def begin(self, part: str) -> None:
        """A part begins, and the one before it is whole.

        Raises:
            InvalidRequest: it was there already. StorageFull: no room.
            InvalidBundle, BackboneMismatch: the config that was there is refused.
        """
        if part not in PARTS or part in self.sizes:
            raise _wrong_parts("repeats a part" if part in PARTS else f"has a part {part[:80]!a}")
        if part == "weights" and "config" in self.sizes and self._convert is None:
            self._most[part] = min(self._most[part], most_weights_bytes(self._checked(), self._fit.backbone))
        with self._lock, storage():
            self._check_there()
            self.directory.mkdir(0o700, exist_ok=True)
            self._files[part] = (self.directory / PARTS[part]).open("wb")
        self.sizes[part] = 0

    def write(self, part: str, content: bytes) -> None:
        """The next bytes of a part that has begun. Raises InvalidBundle, StorageFull."""
        if self.sizes[part] + len(content) > self._most[part]:
            raise InvalidBundle(f"{PARTS[part]} is larger than the {self._most[part]:,} bytes accepted here")
        if part == "config":
            self.config += content
        if part == "weights" and len(self._start) < LENGTH_BYTES:
            self._start += content[:LENGTH_BYTES]
            check_header_length(self._start)
        with self._lock, storage():
            self._check_there()
            self._require_room(len(content))
            self._files[part].write(content)
            self._hashes[part].update(content)
        self.sizes[part] += len(content)

    def finish(self) -> Manifest:
        """The manifest of the bundle, whose files are whole and durable now.

        Raises:
            InvalidRequest: parts are missing. InvalidBundle, BackboneMismatch: the config is refused.
            StorageFull: no room.
        """
        if missing := [part for part in ("config", "weights") if part not in self.sizes]:
            raise _wrong_parts(f"lacks {' and '.join(missing)}")
        if self._convert is not None:
            self._become(self._convert)
        manifest = self._checked()
        with self._lock, storage():
            self._check_there()
            for file in self._files.values():
                file.flush()
                os.fchmod(file.fileno(), FILE_MODE)
                os.fsync(file.fileno())
                file.close()
            self._files.clear()
            sync_directory(self.directory)
        return manifest

    def read_weights(self, manifest: Manifest) -> AdapterWeights:
        """Its weights. Raises InvalidBundle unless they are what the manifest says."""
        tensors = read_weights(self.directory / WEIGHTS_FILE, manifest, self._fit.backbone)
        return AdapterWeights.from_tensors(manifest.adapter_spec(), tensors)

    @contextmanager
    def being_published(self) -> Iterator[None]:
        """Take it over: until the end, when what was not published goes, nobody else's `discard` does anything.

        Raises:
            DeadlineExceeded: it was discarded before.
        """
        with self._lock:
            self._check_there()
            self._is_published = True
        try:
            yield
        finally:
            with self._lock:
                self._remove()

    def discard(self) -> None:
        """Remove what is still here, unless it is being published, or was."""
        with self._lock:
            if not self._is_published:
                self._remove()

    @property
    def is_converted(self) -> bool:
        """Whether its parts are another library's."""
        return self._convert is not None

    def _become(self, convert: Convert) -> None:
        """Take the bundle that the files are made into for what was uploaded."""
        for file in self._files.values():
            file.close()
        convert(self.directory, self.name)
        for part in self._files:
            path = self.directory / PARTS[part]
            content, self._files[part] = path.read_bytes(), path.open("ab")
            self.sizes[part], self._hashes[part] = len(content), hashlib.sha256(content)
        self.config = (self.directory / CONFIG_FILE).read_bytes()

    def _checked(self) -> Manifest:
        if self._manifest is None:
            self._manifest = self._fit.check_config(self.name, self.config)
        return self._manifest

    def _check_there(self) -> None:
        if self._is_gone:
            raise DeadlineExceeded("the upload was given up before it was whole; nothing was changed")

    def _remove(self) -> None:
        self._is_gone = True
        for file in self._files.values():
            with suppress(OSError):  # what it still buffers has no room; it goes anyway
                file.close()
        self._files.clear()
        shutil.rmtree(self.directory, ignore_errors=True)


def _wrong_parts(fault: str) -> InvalidRequest:
    return InvalidRequest(f"a bundle is one part 'config', one 'weights' and maybe one 'card'; this {fault}")
