"""What surrounds every request: its id, metrics, access log, safe headers, and the net below unexpected errors."""

import logging
import re
import time
import uuid
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.context import Context
from service.api.problems import of_unexpected, problem
from service.telemetry import REQUEST_ID

CLIENT_GONE: Final = 499  # nginx's status for a client that left before its answer; only in metrics and log
UNMATCHED: Final = "unmatched"  # route label of paths that are no route
QUIET_ROUTES: Final = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds
NOTED: Final = {"key": "actor", "adapters": "adapters", "audio_seconds": "audio_seconds"}  # fields of the log
EXPECTED: Final = frozenset({200, 503})  # of those; anything else is logged

TWO_CALLERS: Final = "a request has one Authorization header; a proxy and the service could each believe another one"

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS: Final = (  # of every answer that does not say otherwise itself, as the pages do
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
_log = logging.getLogger("service.requests")


class Surroundings:
    """ASGI middleware around the whole application.

    Args:
        app: answers requests.
        rest: takes everything else, as the server's start and end.
    """

    def __init__(self, app: ASGIApp, rest: ASGIApp, context: Context) -> None:
        self.app = app
        self.rest = rest
        self.context = context
        self.telemetry = context.telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.rest(scope, receive, send)
            return
        request_id = _request_id(scope)
        token = REQUEST_ID.set(request_id)
        status = CLIENT_GONE
        started = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                said = {name for name, _ in headers}
                headers += [field for field in _HEADERS if field[0] not in said]
                headers.append((b"x-request-id", request_id.encode()))
                if self.context.draining:
                    headers.append((b"connection", b"close"))  # the next request is for another server
                for name, value in _state(scope).get("answer_headers", {}).items():
                    headers.append((name.lower().encode(), value.encode()))
            await send(message)

        self.telemetry.requests_in_flight.inc()
        try:
            try:
                app = self.app if _has_one_caller(scope) else problem("bad_http", TWO_CALLERS, path=scope["path"])
                await app(scope, receive, send_with_headers)
            except ClientDisconnect:
                pass
            except Exception as error:
                if status != CLIENT_GONE:  # half an answer is out already: the server must cut it off
                    raise
                await of_unexpected(error, scope["path"])(scope, receive, send_with_headers)
        finally:
            self.telemetry.requests_in_flight.dec()
            self._record(scope, status, time.perf_counter() - started)
            REQUEST_ID.reset(token)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route: str = getattr(scope.get("route"), "path", UNMATCHED)
        self.telemetry.count_request(route, status)
        self.telemetry.request_seconds.observe(seconds)
        if route not in QUIET_ROUTES or status not in EXPECTED:
            fields = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 6)}
            fields |= {name: told for name, of in NOTED.items() if (told := _state(scope).get(of))}
            if scope.get("client"):
                fields["client"] = scope["client"][0]
            _log.info("request", extra=fields)


def _state(scope: Scope) -> dict[str, Any]:
    """What the routes noted of a request: `actor`, `adapters`, `audio_seconds`, `answer_headers`."""
    state: dict[str, Any] = scope.get("state", {})
    return state


def _has_one_caller(scope: Scope) -> bool:
    return len([name for name, _ in scope["headers"] if name == b"authorization"]) <= 1


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(text := value.decode("latin-1")):
            return str(text)
    return uuid.uuid4().hex
