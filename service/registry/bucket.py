"""Bundles in an object store that speaks S3's, Google's or Azure's protocol.

<url>/<sha256>/<upload>/adapter_model.safetensors, README.md, adapter_config.json
<url>/.catalogue           id of the catalogue that refers to them

No two uploads have a key in common, so what takes away the one, however late the store does it, leaves the other.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from service.errors import InvalidBundle, InvalidRequest, RegistryUnavailable
from service.registry.bundle import CARD_FILE, WEIGHTS_FILE, Stored, digest_at
from service.registry.cache import Cache
from service.registry.manifest import CONFIG_FILE
from service.registry.objects import OWNER, Directory, ObjectStore, T, require_owner
from service.registry.quarantine import storage

CACHE: Final = "cache"  # in the data directory
REMOTE: Final = re.compile(r"(s3|gs|az)://[A-Za-z0-9._-]+(/[^?#]*)?")  # as this, a URL has no room for a secret
FILES: Final = (WEIGHTS_FILE, CARD_FILE, CONFIG_FILE)  # in the order they are sent: with the last it is whole
SETTLED: Final = timedelta(days=1)  # what any server sent longer ago has its rows by now, or never will
_PROBE: Final = ".probe"
_CLIENT: Any = {"connect_timeout": "3s", "timeout": "30s", "allow_http": True}  # http where an endpoint says so
_RETRY: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=5)}
_MEANWHILE: Final = "what is known and lies here is served, nothing can be uploaded until that is mended"
_SAID: Final = re.compile(r"<Code>([^<]*)</Code>\s*<Message>([^<]*)</Message>")  # by all three protocols

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Upload:
    """What lies in the store of one upload: name -> bytes of each file, and when the last was sent."""

    place: str
    sent: datetime
    sizes: dict[str, int] = field(default_factory=dict)


class Bucket:
    """The bundles under one URL of an object store. Thread-safe.

    Args:
        url: `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`; who may use it is read from the
            environment, by the names that the store's own tools read.
        local: where those in use lie.

    Raises:
        InvalidRequest: the URL is none, or its client is not installed.
    """

    def __init__(self, url: str, local: Cache) -> None:
        self.local = local
        self._url = url
        self._store: Any = _client(url)
        self._settled: set[str] = set()  # places of uploads of this process

    def belong_to(self, catalogue: str) -> None:
        from obstore.exceptions import AlreadyExistsError

        with self._asking("list"):
            next(iter(self._store.list(chunk_size=1)), None)
        with self._asking("write"):
            self._store.put(_PROBE, b"")
        with self._asking("delete"), suppress(FileNotFoundError):  # another server's probe, which was this one too
            self._store.delete(_PROBE)
        with self._asking("read"):
            try:
                owner = bytes(self._store.get(OWNER).bytes())
            except FileNotFoundError:
                with suppress(AlreadyExistsError):  # another database was first, or its answer was lost
                    self._store.put(OWNER, catalogue.encode(), mode="create")
                owner = bytes(self._store.get(OWNER).bytes())
        require_owner(self._url, owner.decode(), catalogue)

    def check(self) -> None:
        try:
            with self._asking("read"):
                self._store.head(OWNER)
        except (RegistryUnavailable, FileNotFoundError) as error:  # `/readyz` tells this to anybody
            _log.warning("%s", getattr(error, "detail", f"{self._url}/{OWNER} is gone"))
            raise RegistryUnavailable(f"the object store cannot be reached; {_MEANWHILE}", retry_after=2.0) from error

    def sizes(self) -> dict[str, int | None]:
        return {
            digest: next((one.sizes.get(WEIGHTS_FILE) for one in uploads if CONFIG_FILE in one.sizes), None)
            for digest, uploads in self._uploads().items()
        }

    def send(self, digest: str, directory: Path) -> None:
        for name in FILES:
            if (directory / name).exists():
                with self._asking("write"):
                    self._store.put(f"{_place(digest, directory)}/{name}", directory / name)

    def settle(self, digest: str, directory: Path) -> None:
        self._settled.add(_place(digest, directory))

    def leftovers(self, digest: str) -> tuple[list[str], float]:
        now, keys, seconds = datetime.now(UTC), [], 0.0
        for one in self._uploads(digest).get(digest, []):
            left = (one.sent + SETTLED - now).total_seconds()
            if one.place in self._settled or left <= 0:
                keys += [f"{one.place}/{name}" for name in one.sizes]
            else:
                seconds = max(seconds, left)
        return keys, seconds

    def discard(self, keys: list[str]) -> None:
        for key in keys:
            self._settled.discard(key.rpartition("/")[0])
        with self._asking("delete"), suppress(FileNotFoundError):
            self._store.delete(keys)

    def directory(self, digest: str) -> Path:
        self.use(digest, os.listdir)
        return self.local.directory(digest)

    def use(self, digest: str, read: Callable[[Path], T]) -> T:
        try:
            return self.local.use(digest, read)
        except (FileNotFoundError, InvalidBundle) as error:
            if self.local.directory(digest).exists():  # else another process let it go; it stays until then
                _log.warning("the copy of %s here is brought anew: %s", digest, error)
        return self._bring(digest, read)

    def verify(self, version: Stored, *, thorough: bool) -> str | None:
        try:
            if thorough:
                self._bring(version.digest, os.listdir)
        except InvalidBundle as error:
            return error.detail
        return None

    # Behind the protocol

    def _bring(self, digest: str, read: Callable[[Path], T]) -> T:
        """What is read of its newest upload that is whole. Raises InvalidBundle unless one is what was uploaded."""
        fault = None
        for upload in self._uploads(digest).get(digest, []):
            if CONFIG_FILE in upload.sizes:
                try:
                    return self._fetch(digest, upload, read)
                except InvalidBundle as error:
                    fault = fault or error
        raise fault or InvalidBundle(f"{self._url}/{_key(digest)} lacks files")

    def _fetch(self, digest: str, upload: _Upload, read: Callable[[Path], T]) -> T:
        """Raises InvalidBundle. Read before another process can let it go, which it can once it has its place."""
        with self.local.bringing(digest, sum(upload.sizes.values())) as directory:
            for name in FILES:
                self._download(upload.place, name, directory)
            if (got := digest_at(directory)) != digest:
                raise InvalidBundle(f"{WEIGHTS_FILE} is damaged in {self._url}: its digest is {got}, not {digest}")
            return read(directory)

    def _download(self, place: str, name: str, directory: Path) -> None:
        """Raises InvalidBundle where a file is missing that must be there."""
        try:
            with self._asking("read"):
                found = self._store.get(f"{place}/{name}")
                self.local.require_room(found.meta["size"])
                with storage(), (directory / name).open("wb") as file:
                    file.writelines(found.stream())
        except FileNotFoundError:
            if name != CARD_FILE:
                raise InvalidBundle(f"{self._url}/{place} lacks files") from None

    def _uploads(self, digest: str = "") -> dict[str, list[_Upload]]:
        """Digest -> what lies there of its uploads, the newest first; of all digests, or of one."""
        found: dict[str, _Upload] = {}
        with self._asking("list"):
            for chunk in self._store.list(f"{_key(digest)}/" if digest else None):
                for one in chunk:
                    place, slash, name = one["path"].rpartition("/")
                    if slash:
                        upload = found.setdefault(place, _Upload(place, one["last_modified"]))
                        upload.sizes[name] = one["size"]
                        upload.sent = max(upload.sent, one["last_modified"])
        uploads: dict[str, list[_Upload]] = {}
        for upload in sorted(found.values(), key=lambda one: one.sent, reverse=True):
            uploads.setdefault(f"sha256:{upload.place.partition('/')[0]}", []).append(upload)
        return uploads

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Faults of the store as the service's errors, but for FileNotFoundError of an object that is read."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            if isinstance(error, FileNotFoundError) and what == "read":  # a list, or a write, misses its bucket
                raise
            said = _SAID.search(str(error))
            line = re.sub(r"\?\S*", "", str(error).splitlines()[0])  # a query may hold a signature
            reason = f"{said[2]} ({said[1]})" if said else line.rpartition("  - ")[2]
            raise RegistryUnavailable(
                f"the object store {self._url} cannot be used to {what}: {reason}; {_MEANWHILE}", retry_after=2.0
            ) from error


def open_objects(data_dir: Path, objects: str = "", cache_bytes: int = 2**32) -> ObjectStore:
    """The place for bundles that `--objects` names: the data directory, unless another or a URL is given.

    Raises:
        InvalidRequest: a URL of another kind, or its client is not installed.
    """
    if is_url(objects):
        return Bucket(objects.rstrip("/"), Cache(data_dir / CACHE, cache_bytes))
    return Directory(Path(objects) if objects else data_dir)


def is_url(objects: str) -> bool:
    """Whether a place is meant to be elsewhere, by a scheme before its first colon."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", objects))


def _client(url: str) -> Any:
    if not REMOTE.fullmatch(url):
        raise InvalidRequest(  # which is not repeated: it may hold a secret
            "the URL given is no place for adapters: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix and "
            "a directory are; credentials come from the environment, never from the URL"
        )
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ModuleNotFoundError:
        raise InvalidRequest("an object store needs its client: pip install 'ipet-serve[objects]'") from None
    try:
        return from_url(url, client_options=_CLIENT, retry_config=_RETRY)
    except BaseError as error:
        raise InvalidRequest(f"the object store {url} cannot be used: {str(error).splitlines()[0]}") from None


def _key(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _place(digest: str, directory: Path) -> str:
    return f"{_key(digest)}/{directory.name}"
