"""Encryption of voiceprints: each vector under a random key of its own, that key under one of the service's.

AES-256-GCM of the package `cryptography`. A service's key is 32 random bytes; its id, which tells nothing of it, is the
start of its SHA-256. The first key given encrypts, all of them decrypt.
"""

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from service.errors import Internal, InvalidRequest
from service.private import FILE_MODE, close_to_others, sync_directory
from service.settings import Settings

KEY_FILE: Final = "voiceprint.keys"  # in the data directory, where no other keys are given
KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_SEALED: Final = b"sealed voiceprint"  # what the derived key is for

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Encrypted:
    """One vector at rest.

    Args:
        wrapped_key: the vector's own key, under the service's key `key_id`; without it the vector is noise.
    """

    key_id: str
    wrapped_key: bytes
    vector: bytes


class Vault:
    """The service's keys, in memory. Thread-safe.

    Args:
        keys: 32 bytes each, the current one first.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = {key_id(key): key for key in keys}
        self.current = key_id(keys[0])

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """With the keys of the environment, of the file named, or of a file in the data directory, made once.

        Raises:
            InvalidRequest: a key is none, or the file cannot be read.
        """
        if settings.voiceprint_keys:
            return cls([parse_key(text) for text in settings.voiceprint_keys])
        named = settings.voiceprint_key_file
        path = named or settings.data_dir / KEY_FILE
        try:
            if named is None:
                _make_key_file(path)
                close_to_others(path, FILE_MODE)
            lines = [line.strip() for line in path.read_text("ascii").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"the keys of voiceprints cannot be read from {path}: {error}") from error
        keys = [parse_key(line) for line in lines if line and not line.startswith("#")]
        if not keys:
            raise InvalidRequest(f"{path} holds no key of voiceprints; `openssl rand -base64 32` makes one")
        return cls(keys)

    @property
    def key_ids(self) -> frozenset[str]:
        """Of every key that is known."""
        return frozenset(self._keys)

    def encrypt(self, vector: Vector, place: str) -> Encrypted:
        """A vector that opens only in `place`: where it is stored, as text."""
        own = secrets.token_bytes(KEY_BYTES)
        values = np.ascontiguousarray(vector, dtype="<f4").tobytes()
        wrapped = _seal(self._keys[self.current], own, place.encode())
        return Encrypted(self.current, wrapped, _seal(own, values, place.encode()))

    def decrypt(self, row: Encrypted, place: str) -> Vector:
        """The vector. Raises Internal where its key is not known, or it was tampered with or moved."""
        key = self._keys.get(row.key_id)
        if key is None:
            raise Internal(f"this server has no key {row.key_id}, under which voiceprints are stored; give it again")
        try:
            return np.frombuffer(_open(_open(key, row.wrapped_key, place.encode()), row.vector, place.encode()), "<f4")
        except InvalidTag:
            raise Internal("a stored voiceprint is not what was stored: it cannot be decrypted") from None

    def seal(self, domain: str, digest: str, vector: Vector) -> str:
        """An embedding `[dim]` by an adapter's version, as text that only this service reads, for callers to keep."""
        content = f"{domain}\0{digest}\0".encode() + np.ascontiguousarray(vector, "<f4").tobytes()
        sealed = bytes.fromhex(self.current) + _seal(_derived(self._keys[self.current]), content, _SEALED)
        return _as_text(sealed)

    def unseal(self, domain: str, digest: str, text: str) -> Vector:
        """What `seal` sealed. Raises InvalidRequest: not by this service, or for another domain or version."""
        try:
            raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            if _as_text(raw) != text:  # Python's decoder skips what is no base64
                raise ValueError(text)
            content = _open(_derived(self._keys[raw[:8].hex()]), raw[8:], _SEALED)
        except (ValueError, KeyError, InvalidTag):
            raise InvalidRequest(
                "a sealed voiceprint is none of this service's, was changed on its way, or its key is gone"
            ) from None
        of_domain, of_digest, values = content.split(b"\0", 2)
        if of_domain != domain.encode():
            raise InvalidRequest("a sealed voiceprint is for the domain of the key that it was made with, not this one")
        if of_digest != digest.encode():
            raise InvalidRequest(
                "a sealed voiceprint is for the version of the adapter that made it: make it anew, or name that version"
            )
        return np.frombuffer(values, "<f4")


def key_id(key: bytes) -> str:
    """What a key is called: 16 hexadecimal digits."""
    return hashlib.sha256(b"ipet voiceprint key" + key).hexdigest()[:16]


def parse_key(text: str) -> bytes:
    """A key in base64. Raises InvalidRequest; never repeats it."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise InvalidRequest(f"a key of voiceprints is {KEY_BYTES} random bytes in base64: `openssl rand -base64 32`")
    return key


def _make_key_file(path: Path) -> None:
    """A new key for whoever is first, readable to the service's user only, whole or not there at all."""
    if path.exists():
        return
    beside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(beside, path)
        except FileExistsError:
            return
    finally:
        beside.unlink()
    sync_directory(path.parent)


def _as_text(sealed: bytes) -> str:
    return base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def _seal(key: bytes, content: bytes, about: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, content, about)


def _open(key: bytes, sealed: bytes, about: bytes) -> bytes:
    return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about)


def _derived(key: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=_SEALED).derive(key)
