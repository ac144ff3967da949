"""How many jobs a domain may have, judged by the rows of the transaction that would add one."""

from dataclasses import dataclass
from typing import Final, Self

from sqlalchemy import Connection, func, select

from service.access.keys import Grant, Scope
from service.errors import Overloaded, StorageFull
from service.jobs.job import OPEN
from service.jobs.tables import jobs
from service.settings import Settings

_MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class JobQuota:
    """How many jobs a domain may have open, and bytes of files; of these one key may hold as many as are free."""

    max_jobs: int
    max_bytes: int

    @classmethod
    def of(cls, grant: Grant, settings: Settings) -> Self | None:
        """The quota of a key's domain; None for `admin`, and so for everybody where no keys are asked for."""
        if grant.allows(Scope.ADMIN):
            return None
        return cls(settings.max_domain_jobs, settings.max_domain_job_mb * _MIB)

    def check(self, connection: Connection, domain: str, actor: str, size: int) -> None:
        """Raises Overloaded, StorageFull where a job of `size` bytes more would be too much."""
        mine = (jobs.c.domain == domain, jobs.c.status.in_(OPEN))
        query = select(jobs.c.actor, func.count()).where(*mine).group_by(jobs.c.actor)
        held = {row[0]: row[1] for row in connection.execute(query)}
        free = self.max_jobs - sum(held.values())
        if free < 1 or (actor in held and held[actor] + 1 > free):
            raise Overloaded(
                f"the domain {domain} has {sum(held.values())} of {self.max_jobs} jobs queued or running, this key "
                f"{held.get(actor, 0)}, and one key may have as many as are free; wait for some or DELETE them",
                retry_after=30.0,
            )
        stored = int(connection.scalar(select(func.sum(jobs.c.size)).where(jobs.c.domain == domain)) or 0)
        if stored + size > self.max_bytes:
            raise StorageFull(
                f"the jobs of the domain {domain} hold {stored / _MIB:,.0f} of {self.max_bytes / _MIB:,.0f} MiB, this "
                f"one has {size / _MIB:,.2f} MiB: DELETE jobs that are not needed"
            )
