"""How much each key may ask: token buckets for rates, counts for requests in flight. Pure; knows no HTTP server.

What callers are told follows draft-ietf-httpapi-ratelimit-headers-11 (May 2026): `RateLimit-Policy` names the
quotas (section 3), `RateLimit` what is left of them (section 4).
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final
from uuid import uuid4

from service.access.keys import Grant, Rate

RATE: Final = "rate"  # names of the two policies, in headers and metrics
CONCURRENCY: Final = "concurrency"
HEARD_SECONDS: Final = 3.0  # after which a server that tells nothing has nothing in flight
_TOLD_AT_ONCE: Final = 80  # keys in 8,000 bytes, which a notice of PostgreSQL may have
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
        self._fill(now)
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def lose(self, tokens: int, now: float) -> None:
        """Tokens that were taken elsewhere; more than there are become a debt, of one bucket at most."""
        self._fill(now)
        self.level = max(-self.rate.requests, self.level - tokens)

    def _fill(self, now: float) -> None:
        elapsed = max(0.0, now - self.at)
        self.level = min(self.rate.requests, self.level + elapsed * self.rate.requests / self.rate.seconds)
        self.at = max(self.at, now)

    @property
    def left(self) -> int:
        """Whole tokens."""
        return max(0, int(self.level))

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
    """What one key has used.

    Args:
        taken: tokens since other servers were told.
        told: requests in flight, as other servers were told.
        elsewhere: requests in flight by server, and when that was told.
    """

    bucket: TokenBucket | None
    in_flight: int = 0
    taken: int = 0
    told: int = 0
    elsewhere: dict[str, tuple[int, float]] = field(default_factory=dict)

    def held(self, now: float) -> int:
        """Requests in flight on all servers that were heard of lately."""
        return self.in_flight + sum(count for count, at in self.elsewhere.values() if now - at < HEARD_SECONDS)


@dataclass(slots=True)
class Gate:
    """Lets requests in by the limits of their keys. Used from the event loop only.

    Limits hold for all servers together as far as these hear what each other `tell`; else for each by itself.
    """

    clock: Callable[[], float] = time.monotonic
    server: str = field(default_factory=lambda: uuid4().hex)
    _used: dict[str, _Use] = field(default_factory=dict)

    def enter(self, actor: str, grant: Grant) -> Verdict:
        """Counts a request of `actor`; one that is let in must `leave`."""
        if grant.rate is None and grant.concurrency is None:
            return Verdict(None, 0.0, {})
        now = self.clock()
        use = self._use(actor, grant.rate, now)
        exceeded, wait = None, 0.0
        if grant.concurrency is not None and use.held(now) >= grant.concurrency:
            exceeded, wait = CONCURRENCY, CONCURRENCY_WAIT
        elif use.bucket is not None and not use.bucket.take(now):
            exceeded, wait = RATE, use.bucket.wait
        else:
            use.in_flight += 1
            use.taken += 1
        return Verdict(exceeded, wait, _headers(grant, use, now))

    def leave(self, actor: str) -> None:
        """Ends a request that was let in."""
        use = self._used.get(actor)
        if use is not None:
            use.in_flight -= 1

    def tell(self) -> list[str]:
        """What other servers have to `hear` of: by key, tokens taken since, its rate, requests in flight; as JSON."""
        news = iter([(actor, use) for actor, use in self._used.items() if use.taken or use.in_flight or use.told])
        told = []
        while some := list(islice(news, _TOLD_AT_ONCE)):
            keys = {}
            for actor, use in some:
                keys[actor] = use.taken, str(use.bucket.rate) if use.bucket else None, use.in_flight
                use.taken, use.told = 0, use.in_flight
            told.append(json.dumps({"server": self.server, "keys": keys}))
        return told

    def hear(self, told: str) -> None:
        """What a server tells, this one too."""
        heard, now = json.loads(told or "{}"), self.clock()
        if heard.get("server", self.server) == self.server:
            return
        for actor, (taken, rate, in_flight) in heard["keys"].items():
            use = self._use(actor, Rate.parse(rate) if rate else None, now)
            lately = {server: told for server, told in use.elsewhere.items() if now - told[1] < HEARD_SECONDS}
            use.elsewhere = lately | {heard["server"]: (in_flight, now)}
            if use.bucket is not None:
                use.bucket.lose(taken, now)

    def _use(self, actor: str, rate: Rate | None, now: float) -> _Use:
        if actor not in self._used:
            self._used[actor] = _Use(TokenBucket.full(rate, now) if rate else None)
        return self._used[actor]


def _headers(grant: Grant, use: _Use, now: float) -> dict[str, str]:
    policies, limits = [], []
    if grant.rate is not None and use.bucket is not None:
        policies.append(f'"{RATE}";q={grant.rate.requests};w={grant.rate.seconds}')
        # Until the next token arrives no more than `left` can be used: that is the effective window.
        limits.append(f'"{RATE}";r={use.bucket.left};t={max(1, math.ceil(use.bucket.wait))}')
    if grant.concurrency is not None:
        policies.append(f'"{CONCURRENCY}";q={grant.concurrency};qu="concurrent-requests"')
        limits.append(f'"{CONCURRENCY}";r={max(0, grant.concurrency - use.held(now))}')
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(limits)}
