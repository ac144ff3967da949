"""What a key is: an identity, its scopes, its domain, the adapters that it is bound to, its limits.

A token is `ipet_<id>_<secret>`: the id is public and finds the key, the secret proves it.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, Self

from service.errors import InvalidRequest

SECRET_BYTES: Final = 32  # 256 bits
MAX_PATTERNS: Final = 64
MAX_LIFETIME_DAYS: Final = 36_525
MAX_RATE: Final = 1_000_000  # requests in a window
MAX_CONCURRENCY: Final = 65_536
WINDOWS: Final = {"s": 1, "m": 60, "h": 3600}  # seconds of a rate's window

_TOKEN: Final = re.compile(r"ipet_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
DEFAULT_DOMAIN: Final = "default"

_ID: Final = re.compile(r"[0-9a-f]{12}")
_DOMAIN: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PATTERN: Final = re.compile(r"[a-z0-9*?][a-z0-9._*?-]{0,63}")
_NAME: Final = re.compile(r"[\w .,:@/+()-]{0,64}")
_RATE: Final = re.compile(rf"([1-9][0-9]{{0,6}})/([{''.join(WINDOWS)}])")
_LIFETIME: Final = re.compile(r"([1-9][0-9]{0,5})([mhdw])")
_LIFETIME_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Scope(StrEnum):
    """What a key may be good for."""

    INFER = "infer"  # classify, embed, score
    READ = "read"  # backbone, adapters, their files
    WRITE = "write"  # upload, aliases, load and unload, delete
    SPEAKERS = "speakers"  # enrolled speakers
    IDENTIFY = "identify"  # one voice against many, beside `speakers`
    ADMIN = "admin"  # all of these, and what touches other tenants: pins


class KeyState(StrEnum):
    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `requests` in a burst, refilled over `seconds`."""

    requests: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`10/s`, `600/m` or `1000/h`. Raises InvalidRequest."""
        found = _RATE.fullmatch(text)
        if found is None or int(found[1]) > MAX_RATE:
            raise InvalidRequest(f"a rate is a number of requests per s, m or h, as in 10/s, got {text[:40]!a}")
        return cls(int(found[1]), WINDOWS[found[2]])

    def __str__(self) -> str:
        unit = next(unit for unit, seconds in WINDOWS.items() if seconds == self.seconds)
        return f"{self.requests}/{unit}"


@dataclass(frozen=True, slots=True)
class Grant:
    """What somebody may do.

    Args:
        adapters: patterns of the adapters' names, with `*` and `?`; none of them means every adapter.
        rate: of requests; None is no limit.
        concurrency: requests in flight; None is no limit.
        expires: when it ends; None is never.
        domain: whose quota its uploads count to.
    """

    scopes: frozenset[Scope]
    adapters: tuple[str, ...] = ()
    rate: Rate | None = None
    concurrency: int | None = None
    expires: datetime | None = None
    domain: str = DEFAULT_DOMAIN

    def __post_init__(self) -> None:
        if not self.scopes:
            raise InvalidRequest(f"a key needs at least one scope of {', '.join(Scope)}")
        if len(self.adapters) > MAX_PATTERNS:
            raise InvalidRequest(f"a key is bound to at most {MAX_PATTERNS} patterns, got {len(self.adapters)}")
        for pattern in self.adapters:
            if not _PATTERN.fullmatch(pattern):
                raise InvalidRequest(f"{pattern[:80]!a} is no pattern of adapter names: a-z, 0-9, '._-', '*' and '?'")
        if self.concurrency is not None and not 1 <= self.concurrency <= MAX_CONCURRENCY:
            raise InvalidRequest(f"concurrency is 1 to {MAX_CONCURRENCY}, got {self.concurrency}")
        require_domain(self.domain)

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def covers(self, adapter: str) -> bool:
        """Whether the adapter of this name is among those it is bound to."""
        return not self.adapters or any(fnmatchcase(adapter, pattern) for pattern in self.adapters)


@dataclass(frozen=True, slots=True)
class Key:
    """A stored key.

    Args:
        digest: of the secret; the secret itself is nowhere.
    """

    id: str
    name: str
    grant: Grant
    created: datetime
    revoked: datetime | None
    digest: bytes = field(repr=False)

    def state(self, now: datetime) -> KeyState:
        if self.revoked is not None:
            return KeyState.REVOKED
        if self.grant.expires is not None and self.grant.expires <= now:
            return KeyState.EXPIRED
        return KeyState.ACTIVE

    def opens_with(self, secret: str) -> bool:
        """Whether `secret` is this key's, in constant time."""
        return hmac.compare_digest(self.digest, digest_of(secret))


@dataclass(frozen=True, slots=True)
class Token:
    """What a caller holds."""

    id: str
    secret: str = field(repr=False)

    @classmethod
    def mint(cls) -> Self:
        return cls(secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None where `text` has not the form of a token."""
        found = _TOKEN.fullmatch(text)
        return cls(found[1], found[2]) if found else None

    def __str__(self) -> str:
        return f"ipet_{self.id}_{self.secret}"


def digest_of(secret: str) -> bytes:
    """SHA-256 of a secret.

    A slow, salted hash (scrypt, Argon2) is for passwords, which can be guessed. These secrets are 256 random
    bits: nobody can try enough of them for the speed of the hash to matter, no two are alike, and every
    request pays for the hash.
    """
    return hashlib.sha256(secret.encode()).digest()


def parse_scopes(text: str) -> frozenset[Scope]:
    """Comma-separated scopes. Raises InvalidRequest."""
    words = _words(text)
    unknown = [word for word in words if word not in set(Scope)]
    if unknown:
        raise InvalidRequest(f"{unknown[0][:40]!a} is no scope; there are {', '.join(Scope)}")
    return frozenset(Scope(word) for word in words)


def parse_patterns(texts: Iterable[str]) -> tuple[str, ...]:
    """Patterns of adapter names, comma-separated in each text; Grant checks them."""
    return tuple(dict.fromkeys(word for text in texts for word in _words(text)))


def parse_lifetime(text: str) -> timedelta:
    """`90m`, `12h`, `30d` or `8w`. Raises InvalidRequest."""
    found = _LIFETIME.fullmatch(text)
    lifetime = timedelta(**{_LIFETIME_UNITS[found[2]]: int(found[1])}) if found else None
    if lifetime is None or lifetime > timedelta(days=MAX_LIFETIME_DAYS):
        raise InvalidRequest(f"a lifetime is a number of m, h, d or w, at most 100 years, as in 30d, got {text[:40]!a}")
    return lifetime


def require_domain(text: str) -> None:
    """Raise InvalidRequest for what cannot name a domain."""
    if not _DOMAIN.fullmatch(text):
        raise InvalidRequest(
            f"{text[:80]!a} is no domain: 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
        )


def require_key_name(name: str) -> None:
    """Raise InvalidRequest for what cannot label a key: it is printed in tables."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"{name[:80]!a} cannot label a key: at most 64 letters, digits, spaces and .,:@/+()_-")


def require_key_id(text: str) -> None:
    """Raise InvalidRequest for what is no key's id, a whole token above all: it would show up in logs."""
    if not _ID.fullmatch(text):
        raise InvalidRequest("a key's id is the 12 hexadecimal digits between ipet_ and the next _")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
