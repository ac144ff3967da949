"""One WebSocket, bounded: its handshake, how large a message may be, how long its reader may take.

Uvicorn's protocol reads no further while a message waits for the application; what is written waits for its reader
without end. Knows uvicorn and no routes.
"""

import asyncio
import logging
import socket
from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_MESSAGE_BYTES: Final = 2**20
UNREAD_BYTES: Final = 2**15  # of what was written that wait here, and as many at the kernel, which doubles them
PING_SECONDS: Final = 20.0
PONG_SECONDS: Final = 60.0  # a client that is held up by its own audio answers behind it

_quiet = logging.getLogger("uvicorn.error.websockets")
_quiet.setLevel(logging.WARNING)


class GuardedSocket(WebSocketsSansIOProtocol):
    """Uvicorn's protocol with limits.

    Args:
        write_seconds: without the client taking anything that was written.
    """

    def __init__(self, *args: Any, write_seconds: float, **named: Any) -> None:
        super().__init__(*args, **named)
        self.logger = _quiet  # its own lines have the query, which no log is to hold
        self._write_seconds = write_seconds
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(UNREAD_BYTES)
        if (connection := transport.get_extra_info("socket")) is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)

    async def send(self, message: Any) -> None:
        """Last words, an `error` and the end, join what waits for a slow reader, for whom there will be no more."""
        if message.get("is_last"):
            self.writable.set()
        await super().send(message)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_waiting()
        if self.close_sent:
            self._abort_later()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        if not self.disconnected:
            self._abort_later()

    def shutdown(self) -> None:
        """The application, which knows that the service stops, says so and closes; others are closed here."""
        if not self.handshake_complete or self.close_sent:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated:  # a head that uvicorn's parser takes, and this one does not
            self.transport.close()

    def _abort_later(self) -> None:
        if self._writing is None:
            self._writing = self.loop.call_later(self._write_seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
