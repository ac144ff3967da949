"""Who may call what: every route declares what it asks of its caller."""

import hmac
from typing import Final
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from service.access.keyring import ANONYMOUS, Caller, bearer, is_loopback
from service.access.keys import Scope
from service.api.context import Context, context_of
from service.errors import Forbidden, NotReady, RateLimited, ServiceError
from service.settings import Settings

ADAPTER_PARAMETERS: Final = ("name", "adapter", "model")  # of paths; `adapter` of queries


class Requirement:
    """What a route requires of its caller; of this one itself, nothing. Declared as the route's first dependency."""

    asks_for_key = False

    def __call__(self) -> None:
        """What FastAPI would call; nobody does: `enter` takes no turn at a thread."""

    def enter(self, request: Request) -> None:
        """Lets a request in, which must `leave`, or raises."""

    def leave(self, request: Request) -> None:
        """Ends a request that was let in."""


class MetricsAccess(Requirement):
    """Dependency of the metrics, which anyone may read: `request.state.reader` is who sees series of adapters and keys.

    None is somebody who sees none of them: without a key while keys are in force, or before that is known.
    """

    def enter(self, request: Request) -> None:
        """Raises Unauthorized for a key that is none; Forbidden for a page of another site, where there are no keys."""
        request.state.reader = self._reader(context_of(request), request)

    def _reader(self, context: Context, request: Request) -> Caller | None:
        given, own = bearer(request.headers.get("authorization")), context.settings.metrics_key
        if own is not None and hmac.compare_digest(given.encode(), own.encode()):
            return ANONYMOUS
        try:
            if own is None and not context.keys.closed:
                return authenticate(context, request)
            return context.keys.caller(f"Bearer {given}") if given else None
        except NotReady:
            return None


class KeyRequired(Requirement, SecurityBase):
    """Dependency of a route that needs a key of `scope`; of any, where that is None.

    Where the request names adapters, they are among those that the key is bound to. `request.state.caller` is who
    calls, `request.state.actor` its name for logs. The key's limits hold until the answer is out, and count what is
    refused, too.
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

    def enter(self, request: Request) -> None:
        """
        Raises:
            Unauthorized, Forbidden, UnknownAdapter, RateLimited: it may not.
            NotReady: the keys could not be read yet.
        """
        context, state = context_of(request), request.state
        state.caller = caller = authenticate(context, request)
        state.actor = caller.actor
        verdict = context.gate.enter(caller.actor, caller.grant)
        state.answer_headers = verdict.headers
        context.telemetry.count_key(caller.actor)
        if verdict.exceeded is not None:
            context.telemetry.count_key_refusal(caller.actor, verdict.exceeded)
            raise RateLimited(
                f"this key's limit of {verdict.exceeded} is reached: {verdict.headers['RateLimit-Policy']}",
                retry_after=verdict.retry_after,
            )
        try:
            if self.scope is not None:
                caller.require_scope(self.scope)
            for reference in adapters_of(request):
                caller.require_adapter(reference)
        except ServiceError:
            self.leave(request)
            raise

    def leave(self, request: Request) -> None:
        context_of(request).gate.leave(request.state.actor)


def adapters_of(request: Request) -> list[str]:
    """The adapters that a request names: every route calls its parameter by one of these names."""
    named = [request.path_params[name] for name in ADAPTER_PARAMETERS if name in request.path_params]
    return named + request.query_params.getlist("adapter")


def caller_of(request: Request) -> Caller:
    """Who sent a request whose route needs a key."""
    caller: Caller = request.state.caller
    return caller


def authenticate(context: Context, request: Request) -> Caller:
    """Who sends a request.

    Raises:
        Unauthorized: without a good key, where there are keys.
        Forbidden: a page of another site, where there are none.
        NotReady: the keys could not be read yet.
    """
    if context.keys.closed:
        return context.keys.caller(request.headers.get("authorization"))
    refuse_foreign_pages(context.settings, request.headers.get("host"), request.headers.get("origin"))
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


def _without_port(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # no address, as in "[::"
        return ""


OPEN: Final = Requirement()
METRICS: Final = MetricsAccess()
ANY_KEY: Final = KeyRequired(None)
INFER: Final = KeyRequired(Scope.INFER)
READ: Final = KeyRequired(Scope.READ)
WRITE: Final = KeyRequired(Scope.WRITE)
SPEAKERS: Final = KeyRequired(Scope.SPEAKERS)
ADMIN: Final = KeyRequired(Scope.ADMIN)
