"""What the registry tells of adapters, as values. Knows no files and no SQL."""

import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from service.errors import AdapterFailed, InvalidRequest, UnknownAdapter, UnknownVersion
from service.model.spec import TaskType
from service.registry.manifest import Manifest, is_alias, is_name

_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One immutable version of an adapter that is not deleted, as the catalogue has it.

    Args:
        config: the bytes of `adapter_config.json`.
        weights_bytes: size of the weights file.
        domain: whose quota it counts to; None is nobody's.
    """

    name: str
    version: int
    digest: str
    config: bytes = field(compare=False, repr=False)
    weights_bytes: int = field(compare=False)
    created: datetime
    domain: str | None = field(compare=False)


@dataclass(frozen=True, slots=True)
class AdapterVersion(VersionRow):
    """A version whose manifest was read; hashable, equal when name, version, digest and date are.

    Args:
        verified: whether the bundle names the live backbone's fingerprint.
    """

    manifest: Manifest = field(compare=False, repr=False)
    verified: bool = field(compare=False)
    reference: str = field(init=False, compare=False, repr=False)  # `name@version`
    key: tuple[str, int] = field(init=False, compare=False, repr=False)  # never used again for other weights

    def __post_init__(self) -> None:
        object.__setattr__(self, "reference", f"{self.name}@{self.version}")
        object.__setattr__(self, "key", (self.name, self.version))


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """One adapter: its versions ascending, and what its aliases point to, `live` included.

    Args:
        task_type: of the live version; None when no version is readable.
        unreadable: versions whose manifest this release cannot read, with the reason.
    """

    name: str
    task_type: TaskType | None
    live: int | None
    aliases: Mapping[str, int]
    versions: tuple[AdapterVersion, ...]
    unreadable: Mapping[int, str] = field(default_factory=dict)

    def version(self, number: int) -> AdapterVersion:
        """Raises UnknownVersion, or AdapterFailed for an unreadable one."""
        index = bisect_left(self.versions, number, key=lambda version: version.version)
        if index < len(self.versions) and self.versions[index].version == number:
            return self.versions[index]
        if number in self.unreadable:
            raise AdapterFailed(self.unreadable[number], adapter=f"{self.name}@{number}")
        known = ", ".join(str(version.version) for version in self.versions[-10:])
        raise UnknownVersion(
            f"adapter {self.name} has no version {number}; it has {known}", adapter=f"{self.name}@{number}"
        )

    def find(self, selector: str) -> AdapterVersion:
        """The version that `selector`, a number or an alias, means."""
        if _VERSION.fullmatch(selector):
            return self.version(int(selector))
        if selector in self.aliases:
            return self.version(self.aliases[selector])
        known = ", ".join(sorted(self.aliases)[:10])
        raise UnknownVersion(
            f"adapter {self.name} has no version or alias {selector[:64]!a}; its aliases are {known}",
            adapter=f"{self.name}@{selector[:64]}",
        )


@dataclass(frozen=True, slots=True)
class Published:
    """Answer to an upload: `created` is False when the version was there before.

    `replayed` is set where an Idempotency-Key was seen before, and the rest is what was answered then.
    """

    version: AdapterVersion
    created: bool
    live: bool
    replayed: bool = False


def split_reference(reference: str) -> tuple[str, str | None]:
    """`name`, `name@2` or `name@canary` -> name and selector.

    Raises:
        UnknownAdapter: not of that form.
    """
    name, at, selector = reference.partition("@")
    if not is_name(name):
        raise UnknownAdapter(
            f"{reference[:80]!a} names no adapter; name, name@2 and name@alias do", adapter=reference[:130]
        )
    return name, selector if at else None


def require_name(name: str) -> None:
    """Raise InvalidRequest for what cannot name an adapter."""
    if not is_name(name):
        raise InvalidRequest(
            f"{name[:80]!a} cannot name an adapter: 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or digit"
        )


def require_alias(alias: str) -> None:
    """Raise InvalidRequest for what cannot be an alias."""
    if not is_alias(alias):
        raise InvalidRequest(
            f"{alias[:80]!a} cannot be an alias: 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a "
            "letter or digit, and not all digits"
        )
