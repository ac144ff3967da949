"""An answer of JSON lines, sent one by one while its request is still at work."""

import json
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.problems import told
from service.errors import ServiceError

NDJSON: Final = "application/x-ndjson"


class Lines(Response):
    """What is left of the answer is sent as any other's is: an end, or why there is none.

    Attributes:
        begun: whether a line has been sent, after which there can be no other answer.
    """

    def __init__(self, send: Send) -> None:
        super().__init__(media_type=NDJSON)
        self.begun = False
        self._send = send
        self._last = b""

    async def send(self, *lines: Mapping[str, Any]) -> None:
        """Sends lines, and waits until the client has taken what was sent before."""
        if not self.begun:
            self.begun = True
            headers = [field for field in self.raw_headers if field[0] != b"content-length"]
            await self._send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await self._send({"type": "http.response.body", "body": encoded(*lines), "more_body": True})

    def ended(self, *lines: Mapping[str, Any]) -> "Lines":
        """The answer, whose last lines these are."""
        self._last += encoded(*lines)
        return self

    def broken(self, error: ServiceError) -> "Lines":
        """The answer, which ends with an error."""
        return self.ended({"type": "error", "error": told(error)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.begun:
            await self.send()
        await self._send({"type": "http.response.body", "body": self._last})


def encoded(*lines: Mapping[str, Any]) -> bytes:
    """Lines of JSON."""
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)
