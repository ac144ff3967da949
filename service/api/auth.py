"""Who may call what: every route declares what it asks of its caller."""

import hmac
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import Depends
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from service.access.keyring import ANONYMOUS, Caller, bearer, is_loopback
from service.access.keys import Scope
from service.api.call import Call
from service.api.openapi import errors
from service.errors import Forbidden, NotReady, RateLimited, ServiceError, Unauthorized
from service.settings import Settings

_EVERYBODYS: Final = (
    *("invalid_request", "unauthorized", "forbidden", "rate_limited", "not_ready", "deadline_exceeded"),
)
ADAPTER_PARAMETERS: Final = ("name", "adapter", "model")  # of paths; `adapter` of queries


class Requirement:
    """What a route requires of its caller; of this one itself, nothing. Declared as the route's first dependency."""

    asks_for_key = False

    def __call__(self) -> None:
        """What FastAPI would call; nobody does: `enter` takes no turn at a thread."""

    def enter(self, call: Call) -> None:
        """Lets a request in, which must `leave`, or raises."""

    def leave(self, call: Call) -> None:
        """Ends a request that was let in."""


class MetricsAccess(Requirement):
    """Dependency of the metrics, which anyone may read: the call's `reader` is who sees series of adapters and keys.

    None is somebody who sees none of them: without a key while keys are in force, or before that is known.
    """

    def enter(self, call: Call) -> None:
        """Raises Unauthorized for a key that is none; Forbidden for a page of another site, where there are no keys."""
        context = call.context
        given, own = bearer(call.headers.get("authorization")), context.settings.metrics_key
        if own is not None and hmac.compare_digest(given.encode(), own.encode()):
            call.reader = ANONYMOUS
            return
        with suppress(NotReady):
            if own is None and not context.keys.closed:
                call.reader = authenticate(call)
            elif given:
                call.reader = context.keys.caller(f"Bearer {given}")


class KeyRequired(Requirement, SecurityBase):
    """Dependency of a route that needs a key of `scope`; of any, where that is None.

    Where the request names adapters, they are among those that the key is bound to. The key's limits hold until the
    answer is made, and count what is refused, too.
    """

    asks_for_key = True

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope
        self.scheme_name = "key"
        self.model = HTTPBearer(
            description="A key made by `ipet keys create`, or one of IPET_INFERENCE_KEYS (may infer and read) or "
            "IPET_ADMIN_KEYS (may do everything); without any keys the service listens on loopback only and asks "
            "for none."
        )

    def enter(self, call: Call) -> None:
        """
        Raises:
            Unauthorized, Forbidden, UnknownAdapter, RateLimited: it may not.
            NotReady: the keys could not be read yet.
        """
        caller = self.count(call)
        try:
            if self.scope is not None:
                caller.require_scope(self.scope)
            if caller.grant.adapters:
                for reference in adapters_of(call):
                    caller.require_adapter(reference)
        except ServiceError:
            self.leave(call)
            raise

    def count(self, call: Call) -> Caller:
        """Who sends a request, which counts from now on. Raises Unauthorized, Forbidden, RateLimited, NotReady."""
        call.reader = caller = authenticate(call)
        verdict = call.context.gate.enter(caller.actor, caller.grant)
        call.answer_headers = verdict.headers
        call.context.telemetry.count_key(caller.actor, verdict.exceeded)
        if verdict.exceeded is not None:
            raise RateLimited(
                f"this key's limit of {verdict.exceeded} is reached: {verdict.headers['RateLimit-Policy']}",
                retry_after=verdict.retry_after,
            )
        return caller

    def leave(self, call: Call) -> None:
        if call.reader is not None:
            call.context.gate.leave(call.reader.actor)


class Unserved(KeyRequired):
    """What a path that no route answers requires: nothing, but that a key's limits count it, too."""

    asks_for_key = False

    def enter(self, call: Call) -> None:
        """Raises RateLimited."""
        with suppress(Unauthorized, Forbidden, NotReady):
            self.count(call)


def asks(requirement: KeyRequired, *codes: str) -> dict[str, Any]:
    """How a route declares what it requires of its caller, and the errors that it may answer beside everybody's."""
    return {"dependencies": [Depends(requirement)], "responses": errors(*_EVERYBODYS, *codes)}


def adapters_of(call: Call) -> list[str]:
    """The adapters that a request names: every route calls its parameter by one of these names."""
    named = [call.path_params[name] for name in ADAPTER_PARAMETERS if name in call.path_params]
    return named + call.query.get("adapter", [])


def authenticate(call: Call) -> Caller:
    """Who sends a request.

    Raises:
        Unauthorized: without a good key, where there are keys.
        Forbidden: a page of another site, where there are none.
        NotReady: the keys could not be read yet.
    """
    keys, headers = call.context.keys, call.headers
    if keys.closed:
        return keys.caller(headers.get("authorization"))
    refuse_foreign_pages(call.context.settings, headers.get("host"), headers.get("origin"))
    return ANONYMOUS


def refuse_foreign_pages(settings: Settings, host: str | None, origin: str | None) -> None:
    """Without keys, keeps pages of other sites, open in the user's browser, from using the service.

    A page may post to 127.0.0.1 across origins, and a name of its own may be made to resolve to 127.0.0.1
    (DNS rebinding); the first shows in `Origin`, the second in `Host`.

    Raises:
        Forbidden: the request comes from a page that is neither the service's own nor of IPET_CORS_ORIGINS.
    """
    if origin is not None and origin not in settings.cors_origins and origin.partition("://")[2] != host:
        raise Forbidden(f"without keys the service answers its own pages only, not {origin[:100]!r}")
    if host is not None and is_loopback(settings.host) and not is_loopback(_without_port(host)):
        raise Forbidden(f"without keys the service answers to loopback names only, not {host[:100]!r}")


@lru_cache(256)
def _without_port(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # no address, as in "[::"
        return ""


OPEN: Final = Requirement()
METRICS: Final = MetricsAccess()
UNSERVED: Final = Unserved(None)
ANY_KEY: Final = KeyRequired(None)
INFER: Final = KeyRequired(Scope.INFER)
READ: Final = KeyRequired(Scope.READ)
WRITE: Final = KeyRequired(Scope.WRITE)
SPEAKERS: Final = KeyRequired(Scope.SPEAKERS)
ADMIN: Final = KeyRequired(Scope.ADMIN)
