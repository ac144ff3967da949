"""Whether the process lives, whether it can answer, and its metrics."""

from typing import Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.access.keyring import Caller
from service.api.auth import METRICS, OPEN
from service.api.context import context_of
from service.api.openapi import errors
from service.api.schemas import Health

router: Final = APIRouter(tags=["health"])


@router.get("/healthz", dependencies=[Depends(OPEN)], response_model_exclude_none=True)
async def healthz() -> Health:
    """Answers as soon as the process listens."""
    return Health(status="ok")


@router.get("/readyz", dependencies=[Depends(OPEN)], response_model_exclude_none=True, responses=errors("not_ready"))
async def readyz(request: Request) -> Health:
    """Answers 200 once the backbone is loaded and warm, 503 again while the service stops or its device hangs.

    `degraded` says why adapters cannot be changed while the registry's database is out of reach, or that stored
    keys were lost: what is known is served and holds, so the service is still ready.
    """
    context = context_of(request)
    context.check_ready()
    faults = [fault for fault in (context.runtime.registry.degraded, context.keys.fault) if fault is not None]
    return Health(status="ready", degraded="; ".join(faults) or None)


@router.get(
    "/metrics",
    dependencies=[Depends(METRICS)],
    response_class=Response,
    responses={
        200: {"description": "Prometheus text format.", "content": {"text/plain": {}}},
        **errors("unauthorized", "forbidden", "overloaded"),
    },
)
async def metrics(request: Request) -> Response:
    """The metrics of this process; series that name adapters or keys only as far as the caller may see these."""
    reader: Caller | None = request.state.reader
    sees = reader.sees if reader is not None else lambda label, value: False
    context = context_of(request)
    content, media_type = await context.scrapes.once(
        context.telemetry.exposition, sees
    )  # thousands of lines where many serve
    return Response(content, headers={"Content-Type": media_type})
