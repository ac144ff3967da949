"""How much each key may ask: token buckets for rates, counts for requests in flight. Pure; knows no HTTP server.

What callers are told follows draft-ietf-httpapi-ratelimit-headers-11 (May 2026): `RateLimit-Policy` names the
quotas (section 3), `RateLimit` what is left of them (section 4).
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from service.access.keys import Grant, Rate

RATE: Final = "rate"  # names of the two policies, in headers and metrics
CONCURRENCY: Final = "concurrency"
CONCURRENCY_WAIT: Final = 1.0  # seconds; nobody knows when a request of the same key will end


@dataclass(slots=True)
class TokenBucket:
    """A full bucket holds `rate.requests` tokens; an empty one is full again after `rate.seconds`.

    Args:
        level: tokens at the moment `at`, on the caller's clock.
    """

    rate: Rate
    level: float
    at: float

    @classmethod
    def full(cls, rate: Rate, now: float) -> "TokenBucket":
        return cls(rate, rate.requests, now)

    def take(self, now: float) -> bool:
        """Takes one token, if there is one."""
        elapsed = max(0.0, now - self.at)
        self.level = min(self.rate.requests, self.level + elapsed * self.rate.requests / self.rate.seconds)
        self.at = max(self.at, now)
        if self.level < 1:
            return False
        self.level -= 1
        return True

    @property
    def left(self) -> int:
        """Whole tokens."""
        return int(self.level)

    @property
    def wait(self) -> float:
        """Seconds until there is one whole token more."""
        return (self.left + 1 - self.level) * self.rate.seconds / self.rate.requests


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request may go on.

    Args:
        exceeded: the policy that says no; None where none does.
        retry_after: seconds until another try makes sense.
        headers: what the caller is told either way.
    """

    exceeded: str | None
    retry_after: float
    headers: Mapping[str, str]


@dataclass(slots=True)
class _Use:
    """What one key has used."""

    bucket: TokenBucket | None
    in_flight: int = 0


@dataclass(slots=True)
class Gate:
    """Lets requests in by the limits of their keys. Used from the event loop only.

    A key's limits hold for each process of the service by itself.
    """

    clock: Callable[[], float] = time.monotonic
    _used: dict[str, _Use] = field(default_factory=dict)

    def enter(self, actor: str, grant: Grant) -> Verdict:
        """Counts a request of `actor`; one that is let in must `leave`."""
        if grant.rate is None and grant.concurrency is None:
            return Verdict(None, 0.0, {})
        now = self.clock()
        use = self._used.get(actor)
        if use is None:
            use = self._used[actor] = _Use(TokenBucket.full(grant.rate, now) if grant.rate else None)
        exceeded, wait = None, 0.0
        if grant.concurrency is not None and use.in_flight >= grant.concurrency:
            exceeded, wait = CONCURRENCY, CONCURRENCY_WAIT
        elif use.bucket is not None and not use.bucket.take(now):
            exceeded, wait = RATE, use.bucket.wait
        else:
            use.in_flight += 1
        return Verdict(exceeded, wait, _headers(grant, use))

    def leave(self, actor: str) -> None:
        """Ends a request that was let in."""
        use = self._used.get(actor)
        if use is not None:
            use.in_flight -= 1


def _headers(grant: Grant, use: _Use) -> dict[str, str]:
    policies, limits = [], []
    if grant.rate is not None and use.bucket is not None:
        policies.append(f'"{RATE}";q={grant.rate.requests};w={grant.rate.seconds}')
        # Until the next token arrives no more than `left` can be used: that is the effective window.
        limits.append(f'"{RATE}";r={use.bucket.left};t={max(1, math.ceil(use.bucket.wait))}')
    if grant.concurrency is not None:
        policies.append(f'"{CONCURRENCY}";q={grant.concurrency};qu="concurrent-requests"')
        limits.append(f'"{CONCURRENCY}";r={max(0, grant.concurrency - use.in_flight)}')
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(limits)}
