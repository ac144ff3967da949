"""The application: every request's one pass, from its id to its line in the log, around the routes; start and end."""

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from fastapi import APIRouter
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import about, adapters, changes, console, openapi
from service.api.call import TIMEOUT_HEADER, Call
from service.api.context import Context, Opener, Runtime
from service.api.dispatch import Dispatch
from service.api.inference import classify, events, model_repository, open_inference, stream, voiceprints
from service.api.jobs import jobs
from service.api.jobs.bulk import enrol_people
from service.api.jobs.hearing import hear_recording
from service.api.jobs.running import Runner
from service.api.problems import of_error, of_unexpected
from service.api.socket import Socket
from service.api.speakers import people, voices
from service.errors import ServiceError
from service.jobs.job import Kind
from service.settings import Settings
from service.telemetry import REQUEST_ID, Telemetry

ROUTERS: Final[tuple[APIRouter, ...]] = (
    about.router,
    classify.router,
    events.router,
    voiceprints.router,
    model_repository.router,  # before the models, one of which could be called stats
    open_inference.router,
    adapters.router,
    changes.router,
    people.router,
    voices.router,
    jobs.router,
    stream.router,
    console.router,
)

CLIENT_GONE: Final = 499  # nginx's status for a client that left before its answer; only in metrics and log
UNMATCHED: Final = "unmatched"  # route label of paths that are no route
QUIET_ROUTES: Final = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds
EXPECTED: Final = frozenset({200, 503})  # of those; anything else is logged

_CORS: Final[dict[str, Any]] = {
    "allow_methods": ("GET", "HEAD", "POST", "PUT", "DELETE"),
    "allow_headers": (
        *("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "X-Request-Id", TIMEOUT_HEADER),
    ),
    "expose_headers": ("ETag", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"),
}
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
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_requests_log = logging.getLogger("service.requests")
_log = logging.getLogger(__name__)


class App:
    """The ASGI application.

    Args:
        life: takes what is no request, the server's start and end.
    """

    def __init__(self, context: Context, life: ASGIApp) -> None:
        self.context = context
        self._life = life
        self._dispatch = Dispatch(ROUTERS)
        self._description: bytes | None = None
        self._inner: ASGIApp = self._answer
        if context.settings.cors_origins:  # none: no page of another origin may read an answer
            self._inner = CORSMiddleware(self._answer, allow_origins=context.settings.cors_origins, **_CORS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._open(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._life(scope, receive, send)
            return
        call = Call(scope, receive, self.context)
        request_id = call.headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = os.urandom(16).hex()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                headers = message["headers"]
                said = {name for name, _ in headers}
                headers += [field for field in _HEADERS if field[0] not in said]
                headers.append((b"x-request-id", request_id.encode()))
                headers += [(name.lower().encode(), text.encode()) for name, text in call.answer_headers.items()]
                if self.context.draining:
                    headers.append((b"connection", b"close"))  # the next request is for another server
            await send(message)

        with self._noted(call, request_id):
            try:
                await self._inner(scope, receive, send_with_headers)
            except Exception as error:
                # Half an answer may be out already: the server must cut it off.
                if isinstance(error, ClientDisconnect) or call.status is not None:
                    raise
                await of_unexpected(error, scope["path"])(scope, receive, send_with_headers)

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket is a request whose head its first message completes, and whose answer is all that is said."""
        call = Call({**scope, "type": "http", "method": "GET"}, receive, self.context)
        call.socket = socket = Socket(receive, send)
        with self._noted(call, os.urandom(16).hex()):
            try:
                answer = await stream.begin(call) or await self._dispatch.answer(call)
            except ClientDisconnect:
                raise
            except ServiceError as error:
                answer = of_error(error)
            except Exception as error:
                answer = of_unexpected(error)
            if answer.status_code != stream.SWITCHED:
                await socket.fail(answer)
            call.status = answer.status_code

    @contextmanager
    def _noted(self, call: Call, request_id: str) -> Iterator[None]:
        """Counts a request and tells the log of it, whatever becomes of it; where its client has gone it is over."""
        call.scope["app"], call.scope["call"] = self, call
        token, started = REQUEST_ID.set(request_id), time.perf_counter()
        self.context.telemetry.requests_in_flight.inc()
        try:
            yield
        except ClientDisconnect:
            pass
        finally:
            self.context.telemetry.requests_in_flight.dec()
            self._record(call, CLIENT_GONE if call.status is None else call.status, time.perf_counter() - started)
            REQUEST_ID.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["call"].send = send
        await (await self._dispatch.answer(scope["call"]))(scope, receive, send)

    def describe(self) -> bytes:
        """The description of the API, as JSON; takes a while the first time."""
        if self._description is None:
            self._description = json.dumps(openapi.describe(ROUTERS)).encode()
        return self._description

    def _record(self, call: Call, status: int, seconds: float) -> None:
        route: str = getattr(call.scope.get("route"), "path", UNMATCHED)
        is_timed = status != stream.SWITCHED and route not in QUIET_ROUTES
        self.context.telemetry.count_request(route, status, seconds if is_timed else None)
        if not _requests_log.isEnabledFor(logging.INFO) or (route in QUIET_ROUTES and status in EXPECTED):
            return
        fields = {"method": call.method, "route": route, "status": status, "seconds": round(seconds, 6)}
        told: dict[str, object] = {"adapters": call.adapters, "audio_seconds": call.audio_seconds}
        told |= {"key": call.reader and call.reader.actor, "client": call.client and call.client.host}
        _requests_log.info("request", extra=fields | {name: one for name, one in told.items() if one})


def create_app(
    settings: Settings,
    open_runtime: Opener,
    *,
    telemetry: Telemetry | None = None,
    on_ready: Callable[[Runtime], None] = lambda runtime: None,
    on_failed: Callable[[Exception], None] = lambda error: None,
) -> App:
    """An application that opens its runtime in the background once it is started.

    Args:
        open_runtime: loads the backbone, opens the registry and builds the engine; may take its time, runs in
            a thread of its own.
        on_ready: called once /readyz answers 200.
        on_failed: called when the runtime could not be opened, or has lost its device for good; the service never gets
            ready then, and its process should end.
    """
    context = Context(settings, telemetry or Telemetry())

    async def start() -> None:
        try:
            runtime = await context.open_beside(open_runtime, on_failed)
        except Exception as error:
            _log.exception("the service could not start")
            on_failed(error)
            return
        on_ready(runtime)
        await Runner(context, runtime, {Kind.EVENTS: hear_recording, Kind.ENROLMENT: enrol_people}).run()

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        await context.keys.start(context.notices)
        context.notices.start()
        beside = [asyncio.create_task(work) for work in (start(), context.share_limits())]
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await asyncio.to_thread(context.keys.close)
            await asyncio.to_thread(context.close)

    return App(context, Router(lifespan=lifespan))
