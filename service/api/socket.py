"""One WebSocket as the routes use it: JSON and audio, bounded in time both ways."""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Send

from service.errors import DeadlineExceeded

SEND_SECONDS: Final = 5.0  # for the client to take what was written before
_CLOSED_WELL: Final = 1000  # RFC 6455, section 7.4.1
_BY_POLICY: Final = 1008
_BY_FAULT: Final = 1011
_TRY_LATER: Final = 1013


class Socket:
    """A WebSocket from its handshake to its end. All that ever waits for a slow reader is what it was told last."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._is_accepted = False
        self._is_read = True
        self.first = b""  # message of the client
        self.left: Callable[[], Iterable[Mapping[str, Any]]] = tuple  # what is still to be told before an error

    async def accept(self) -> None:
        """Raises ClientDisconnect."""
        await self.receive("websocket.connect")
        await self._send({"type": "websocket.accept"})
        self._is_accepted = True

    async def receive(self, kind: str = "websocket.receive") -> str | bytes:
        """The next message, text or audio. Raises ClientDisconnect."""
        message = await self._receive()
        if message["type"] != kind:
            raise ClientDisconnect
        text: str | None = message.get("text")
        return message.get("bytes") or b"" if text is None else text

    async def send(self, message: Mapping[str, Any]) -> None:
        """Raises DeadlineExceeded where the client does not read; ClientDisconnect."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._send({"type": "websocket.send", "text": json.dumps(message, ensure_ascii=False)})
        except TimeoutError as error:
            self._is_read = False
            told = f"the stream's messages were not read for {SEND_SECONDS:g} s; read them as they come"
            raise DeadlineExceeded(told) from error
        except OSError as error:  # the protocol's word for a connection that is gone
            raise ClientDisconnect from error

    async def close(self) -> None:
        """At the end of all that was to be said."""
        with suppress(OSError):
            await self._send({"type": "websocket.close", "code": _CLOSED_WELL})

    async def fail(self, problem: Response) -> None:
        """Tell the problem and close; before the handshake is answered, that is its answer."""
        if not self._is_accepted:
            await self.receive("websocket.connect")
            start = {"type": "websocket.http.response.start", "status": problem.status_code}
            await self._send({**start, "headers": problem.raw_headers})
            await self._send({"type": "websocket.http.response.body", "body": problem.body})
            return
        told = json.loads(bytes(problem.body))
        code = _BY_FAULT if problem.status_code == 500 else _BY_POLICY
        code = _TRY_LATER if "retry-after" in problem.headers else code
        with suppress(OSError, ClientDisconnect, DeadlineExceeded):  # there is nobody to hear it
            for message in self.left() if self._is_read else ():
                await self.send(message)
            text = json.dumps({**told, "type": "error"}, ensure_ascii=False)
            await self._send({"type": "websocket.send", "text": text, "is_last": True})
            await self._send({"type": "websocket.close", "code": code, "reason": told["code"], "is_last": True})
