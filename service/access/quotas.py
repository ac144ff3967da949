"""How much the versions of one domain may take up, judged by the rows of the transaction that would add one."""

from dataclasses import dataclass
from typing import Protocol, Self

from service.access.keys import Grant, Scope
from service.errors import StorageFull
from service.settings import Settings

_MIB = 2**20


class Holdings(Protocol):
    """A transaction on what is stored."""

    def holdings(self, domain: str) -> tuple[int, int]:
        """Number of the domain's versions that are not deleted, and bytes of their files."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What the versions of a domain may be, together.

    Args:
        max_bytes: of all their files, cards included.
    """

    domain: str
    max_bytes: int
    max_versions: int

    @classmethod
    def of(cls, grant: Grant, settings: Settings) -> Self | None:
        """The quota of a key's domain; None for `admin`, and so for everybody where no keys are asked for."""
        if grant.allows(Scope.ADMIN):
            return None
        return cls(grant.domain, settings.max_domain_mb * _MIB, settings.max_domain_versions)

    def __call__(self, transaction: Holdings, size: int) -> None:
        """Raises StorageFull, with what is used and allowed, where a version of `size` bytes more would be too much."""
        versions, stored = transaction.holdings(self.domain)
        if versions + 1 > self.max_versions or stored + size > self.max_bytes:
            raise StorageFull(
                f"the domain {self.domain} holds {versions:,} of {self.max_versions:,} versions allowed and "
                f"{stored / _MIB:,.2f} of {self.max_bytes / _MIB:,.0f} MiB; this version has "
                f"{size / _MIB:,.2f} MiB: delete versions that are not needed, or ask for more"
            )
