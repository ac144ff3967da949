"""From a request's body to a bundle in the registry's quarantine, piece by piece. Knows no tensors."""

import asyncio
from collections.abc import Sequence
from typing import Final

from service.api.bodies import Piece, stream_parts
from service.api.lifetime import Admission
from service.errors import ServiceError
from service.registry.upload import PARTS, Upload

_FLUSH_BYTES: Final = 2**18  # held in memory before they are written
_DRAIN_SECONDS: Final = 2.0  # for the rest of a refused body, so that its sender gets to read the answer


async def receive_bundle(admission: Admission, upload: Upload) -> None:
    """Reads the parts `config`, `weights` and `card` into `upload`, which looks at them as they come.

    Raises:
        InvalidRequest: not multipart, or other parts.
        InvalidBundle, BackboneMismatch: what has arrived so far is refused; the rest is not looked at.
        PayloadTooLarge, StorageFull: too large for the service, or for its disk.
    """
    refusals: list[ServiceError] = []
    try:
        async with asyncio.timeout(None) as timer:
            await _receive(admission, upload, timer, refusals)
    except (ServiceError, TimeoutError):
        if not refusals:
            raise
    if refusals:
        raise refusals[0]


async def _receive(admission: Admission, upload: Upload, timer: asyncio.Timeout, refusals: list[ServiceError]) -> None:
    """Reads to the body's end; once there is a refusal, without looking and for a moment only."""
    waiting: list[Piece] = []
    size = 0

    async def flush() -> None:
        try:
            await admission.context.disk.run(_write, upload, waiting)
        except ServiceError as error:
            refusals.append(error)
            timer.reschedule(asyncio.get_running_loop().time() + _DRAIN_SECONDS)

    async for piece in stream_parts(admission.request, PARTS, len(PARTS), admission.context.settings.max_body_bytes):
        if refusals:
            continue
        waiting.append(piece)
        size += len(piece.content)
        if piece.begins or size >= _FLUSH_BYTES:
            await flush()
            waiting, size = [], 0
    if not refusals:
        await flush()


def _write(upload: Upload, pieces: Sequence[Piece]) -> None:
    for piece in pieces:
        if piece.begins:
            upload.begin(piece.name)
        upload.write(piece.name, piece.content)
