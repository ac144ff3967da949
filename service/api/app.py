"""The application: routes, errors and the runtime that is opened behind them while the port already answers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from service.api import openapi
from service.api.context import Context, Opener, Runtime
from service.api.dispatch import Dispatch
from service.api.lifetime import TIMEOUT_HEADER
from service.api.middleware import Surroundings
from service.api.routes import (
    adapters,
    backbone,
    changes,
    console,
    health,
    huggingface,
    inference,
    key,
    model_repository,
    open_inference,
    speakers,
)
from service.settings import Settings
from service.telemetry import Telemetry

ROUTERS: Final[tuple[APIRouter, ...]] = (
    health.router,
    inference.router,
    huggingface.router,
    model_repository.router,  # before the models, one of which could be called stats
    open_inference.router,
    adapters.router,
    changes.router,
    backbone.router,
    key.router,
    speakers.router,
    console.router,
)

_CORS: Final[dict[str, Any]] = {
    "allow_methods": ("GET", "HEAD", "POST", "PUT", "DELETE"),
    "allow_headers": ("Authorization", "Content-Type", "Idempotency-Key", "X-Request-Id", TIMEOUT_HEADER),
    "expose_headers": ("ETag", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"),
}

_log = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    open_runtime: Opener,
    *,
    telemetry: Telemetry | None = None,
    on_ready: Callable[[Runtime], None] = lambda runtime: None,
    on_failed: Callable[[Exception], None] = lambda error: None,
) -> FastAPI:
    """An ASGI application that opens its runtime in the background once it is started.

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

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await context.keys.start()
        tasks = asyncio.create_task(start()), asyncio.create_task(context.keys.watch())
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(context.keys.close)
            await asyncio.to_thread(context.close)

    app = FastAPI(
        title="ipet-serve",
        version=_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        generate_unique_id_function=openapi.operation_id,
        redirect_slashes=False,  # an adapter's name that ends in a slash is one that there is not
    )
    app.state.context = context
    for router in ROUTERS:
        app.include_router(router)
    openapi.install(app)
    answering: ASGIApp = Dispatch.of(ROUTERS, settings.max_adapters)
    if settings.cors_origins:  # none: no page of another origin may read an answer
        answering = CORSMiddleware(answering, allow_origins=settings.cors_origins, **_CORS)
    app.middleware_stack = Surroundings(answering, app.router, context)
    return app


def _version() -> str:
    try:
        return version("ipet-serve")
    except PackageNotFoundError:  # running from a checkout that is not installed
        return "0"
