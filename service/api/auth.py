"""Who may call what: bearer keys and the scope that every route declares. Knows no routes."""

import hmac
import ipaddress
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from service.errors import Forbidden, Unauthorized
from service.settings import Settings


class Scope(StrEnum):
    """What a route asks of its caller."""

    OPEN = "open"  # nobody is asked for a key
    INFER = "infer"  # inference and reading; any key
    ADMIN = "admin"  # writing; an admin key


class Open:
    """Dependency of a route that anyone may call."""

    scope: Final = Scope.OPEN

    def __call__(self) -> None:
        return None


class KeyRequired(SecurityBase):
    """Dependency of a route that needs a key of `scope`; raises Unauthorized or Forbidden."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.scheme_name = "key"
        self.model = HTTPBearer(
            description="IPET_INFERENCE_KEYS may infer and read, IPET_ADMIN_KEYS may also write; "
            "without keys the service listens on loopback only and asks for none."
        )

    async def __call__(self, request: Request) -> None:
        settings: Settings = request.app.state.context.settings
        if settings.inference_keys or settings.admin_keys:
            authorise(settings, request.headers.get("authorization"), self.scope)
        else:
            refuse_foreign_pages(settings, request.headers.get("host"), request.headers.get("origin"))


def authorise(settings: Settings, authorization: str | None, scope: Scope) -> None:
    """Checks a request's Authorization header against the configured keys, in constant time.

    Raises:
        Unauthorized: no key, not a bearer key, or an unknown one.
        Forbidden: an inference key where an admin key is needed.
    """
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("this call needs a key: Authorization: Bearer ...")
    is_admin = _is_one_of(key.strip(), settings.admin_keys)
    is_inference = _is_one_of(key.strip(), settings.inference_keys)
    if not (is_admin or is_inference):
        raise Unauthorized("the key is not one of this service's keys")
    if scope is Scope.ADMIN and not is_admin:
        raise Forbidden("this key may infer and read; writing needs a key from IPET_ADMIN_KEYS")


def _is_one_of(key: str, known: tuple[str, ...]) -> bool:
    given, found = key.encode(), False
    for candidate in known:
        found |= hmac.compare_digest(given, candidate.encode())
    return found


def refuse_foreign_pages(settings: Settings, host: str | None, origin: str | None) -> None:
    """Without keys, keeps pages of other sites, open in the user's browser, from using the service.

    A page may post to 127.0.0.1 across origins, and a name of its own may be made to resolve to 127.0.0.1
    (DNS rebinding); the first shows in `Origin`, the second in `Host`.

    Raises:
        Forbidden: the request comes from a page that is not the service's own.
    """
    if origin is not None and urlsplit(origin).netloc != host:
        raise Forbidden(f"without keys the service answers its own pages only, not {origin[:100]!r}")
    if host is not None and is_loopback(settings.host) and not is_loopback(urlsplit(f"//{host}").hostname or ""):
        raise Forbidden(f"without keys the service answers to loopback names only, not {host[:100]!r}")


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, can only be this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


OPEN: Final = Open()
INFER: Final = KeyRequired(Scope.INFER)
ADMIN: Final = KeyRequired(Scope.ADMIN)
