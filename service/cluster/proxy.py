"""What Ray Serve's own HTTP proxy lacks: an answer of 503 where the front that had the request has died."""

from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import of_error
from service.errors import NotReady

ENVIRONMENT: Final = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "service.cluster.proxy.middlewares"}
_TOLD: Final = "the process that had the request is gone; another takes its place: try again"


class Unanswered:
    """Answers for whoever ended without a word."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_begun = False

        async def watched(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        await self._app(scope, receive, watched)
        if not is_begun:
            await of_error(NotReady(_TOLD, retry_after=1.0))(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Called by each proxy as it starts."""
    return [Middleware(Unanswered)]
