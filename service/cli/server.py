"""The HTTP server around the application: uvicorn, with an orderly end. Knows no routes and no engine.

The first SIGTERM or SIGINT begins the drain: readiness turns off at once, new requests are taken for another
`--shutdown-delay` seconds, then the port closes, idle connections with it, and what was admitted is finished within
`--shutdown-timeout`; soon after that the process has ended, whatever hangs. A second signal ends it where it stands.
"""

import asyncio
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from socket import socket
from types import FrameType
from typing import Final, cast

import uvicorn

from service.api.app import UNMATCHED, App
from service.cli.guard import GuardedProtocol, Limits
from service.cli.sockets import MAX_MESSAGE_BYTES, PING_SECONDS, PONG_SECONDS, GuardedSocket
from service.settings import Settings

KEEP_ALIVE_SECONDS: Final = 30
LAST_SECONDS: Final = 3  # after that deadline: for a batch that runs, and for those beyond telling
SLOW_READER_SECONDS: Final = 20  # of a WebSocket, whom the application gives up before
NET_SECONDS: Final = 1  # after the drain's deadline, at which every request has been told: for those beyond telling


class Server(uvicorn.Server):
    """A server of one application that ends with status 0 when a signal ends it."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._context = app.context
        self._settings = settings
        self._closes_at: float | None = None  # on the clock of time.monotonic
        super().__init__(
            uvicorn.Config(
                app,
                http=self._guarded(),
                ws=cast(type[asyncio.Protocol], partial(GuardedSocket, write_seconds=SLOW_READER_SECONDS)),
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_ping_interval=PING_SECONDS,
                ws_ping_timeout=PONG_SECONDS,
                ws_per_message_deflate=False,  # audio is no smaller, and each socket would hold buffers for it
                log_config=None,  # logs go where the process's logs go
                access_log=False,  # the application's own says more
                server_header=False,
                date_header=True,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=round(settings.shutdown_timeout) + NET_SECONDS,
            )
        )

    def _guarded(self) -> type[asyncio.Protocol]:
        """The protocol of this server's connections."""
        timeout = self._settings.request_timeout + NET_SECONDS  # what a route's own deadline ends is told by it
        limits = Limits(self._settings.head_timeout, timeout, timeout, self._settings.max_connections)

        def refused(status: int) -> None:
            self._context.telemetry.count_request(UNMATCHED, status)

        return cast(type[asyncio.Protocol], partial(GuardedProtocol, limits=limits, on_refusal=refused))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Runs between two bytecodes of the event loop's thread, so it only sets flags."""
        if self._closes_at is not None:
            os._exit(128 + sig)  # as a shell shows it; the default action is no way out for process 1 of a container
        self._context.draining = True
        self.end_within(self._settings.shutdown_delay + self._settings.shutdown_timeout)
        self._closes_at = time.monotonic() + self._settings.shutdown_delay

    def end_within(self, seconds: float) -> None:
        """Ends the process with status 1 if it is still there `LAST_SECONDS` after these, whatever threads hang.

        It is not Python that ends it then, so that not even one that holds the interpreter can keep it; where every
        thread was is written to standard error first. What was answered is on disk: nothing else has to be flushed.
        """
        faulthandler.dump_traceback_later(seconds + LAST_SECONDS, exit=True)

    async def on_tick(self, counter: int) -> bool:
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        self._context.drain(self._settings.shutdown_timeout)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's own raises a signal again once it was obeyed, and the process would end by it, not with 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)
