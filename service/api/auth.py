"""Who may call what: every route declares what it asks of its caller. Knows no routes."""

import hmac
import ipaddress
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from service.api.context import Context, context_of
from service.api.keyring import ANONYMOUS, Caller, bearer
from service.errors import Forbidden, RateLimited, Unauthorized
from service.registry.keys import Scope
from service.settings import Settings

ADAPTER_PARAMETERS: Final = ("name", "adapter", "model")  # of paths; `adapter` of queries


class Open:
    """Dependency of a route that anyone may call."""

    async def __call__(self) -> None:  # a plain function would wait for a thread that others keep busy
        return None


class MetricsKey:
    """Dependency of the metrics: anyone may read them, unless IPET_METRICS_KEY names their key."""

    async def __call__(self, request: Request) -> None:
        key = context_of(request).settings.metrics_key
        if key is None:
            return
        header = request.headers.get("authorization")
        if not hmac.compare_digest(bearer(header).encode(), key.encode()):
            raise Unauthorized("the metrics need the key of IPET_METRICS_KEY: Authorization: Bearer ...")


class KeyRequired(SecurityBase):
    """Dependency of a route that needs a key of `scope`.

    Where the request names adapters, they are among those that the key is bound to. `request.state.caller` is who
    calls, `request.state.actor` its name for logs. The key's limits hold until the answer is out.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.scheme_name = "key"
        self.model = HTTPBearer(
            description="A key made by `ipet keys create`, or one of IPET_INFERENCE_KEYS (may infer and read) or "
            "IPET_ADMIN_KEYS (may do everything); without any keys the service listens on loopback only and asks "
            "for none."
        )

    async def __call__(self, request: Request) -> AsyncIterator[None]:
        """
        Raises:
            Unauthorized, Forbidden, UnknownAdapter, RateLimited: it may not.
            NotReady: the keys could not be read yet.
        """
        context, state = context_of(request), request.state
        state.caller = caller = identify(context, request)
        state.actor = caller.actor
        require_scope(caller, self.scope)
        for reference in adapters_of(request):
            caller.require(reference)
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
            yield
        finally:
            context.gate.leave(caller.actor)


def adapters_of(request: Request) -> list[str]:
    """The adapters that a request names: every route calls its parameter by one of these names."""
    named = [request.path_params[name] for name in ADAPTER_PARAMETERS if name in request.path_params]
    return named + request.query_params.getlist("adapter")


def caller_of(request: Request) -> Caller:
    """Who sent a request whose route needs a key."""
    caller: Caller = request.state.caller
    return caller


def identify(context: Context, request: Request) -> Caller:
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


def require_scope(caller: Caller, scope: Scope) -> None:
    """Raises Forbidden where the caller's key lacks `scope`."""
    if not caller.grant.allows(scope):
        has = ", ".join(sorted(caller.grant.scopes))
        raise Forbidden(f"this call needs a key with the scope {scope}; this one has {has}")


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


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, can only be this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


OPEN: Final = Open()
METRICS: Final = MetricsKey()
INFER: Final = KeyRequired(Scope.INFER)
READ: Final = KeyRequired(Scope.READ)
WRITE: Final = KeyRequired(Scope.WRITE)
SPEAKERS: Final = KeyRequired(Scope.SPEAKERS)
ADMIN: Final = KeyRequired(Scope.ADMIN)
