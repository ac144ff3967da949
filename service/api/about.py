"""What the service tells of itself: whether it lives and can answer, its metrics, its backbone, the caller's key."""

from typing import Final

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.responses import Response

from service.access.keys import Scope
from service.access.quotas import Quota
from service.answers import BackboneInfo, Health
from service.api.auth import ANY_KEY, METRICS, OPEN, READ, asks
from service.api.call import Call
from service.api.openapi import errors

router: Final = APIRouter()


class KeyLimits(BaseModel):
    rate: str | None = Field(description="Requests in a second, minute or hour, as in `10/s`.")
    concurrency: int | None = Field(description="Requests in flight.")
    domain_mb: int | None = Field(description="MiB of all versions of the domain.")
    domain_versions: int | None = Field(description="Versions of the domain.")


class KeyInfo(BaseModel):
    id: str = Field(description="`env:admin-1` and the like for the variables' keys, `anonymous` without keys.")
    name: str
    scopes: list[Scope]
    adapters: list[str] = Field(description="Names and patterns that the key is bound to; none is every adapter.")
    domain: str
    limits: KeyLimits = Field(description="Null where there is none.")


@router.get("/healthz", tags=["health"], dependencies=[Depends(OPEN)])
async def healthz() -> Health:
    """Answers as soon as the process listens."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    tags=["health"],
    dependencies=[Depends(OPEN)],
    responses=errors("not_ready"),
)
async def readyz(call: Call) -> Health:
    """Answers 200 once the backbone is loaded and warm, 503 again while the service stops or its device hangs.

    `degraded` says why adapters cannot be changed while the registry's database or files are out of reach, or
    that stored keys were lost: what is known is served and holds, so the service is still ready.
    """
    call.context.check_ready()
    faults = [fault for fault in (call.runtime.registry.degraded, call.context.keys.fault) if fault is not None]
    return {"status": "ready", "degraded": "; ".join(faults)} if faults else {"status": "ready"}


@router.get(
    "/metrics",
    tags=["health"],
    dependencies=[Depends(METRICS)],
    response_class=Response,
    responses={
        200: {"description": "Prometheus text format.", "content": {"text/plain": {}}},
        **errors("unauthorized", "forbidden", "overloaded"),
    },
)
async def metrics(call: Call) -> Response:
    """The metrics of this process; series that name adapters or keys only as far as the caller may see these."""
    telemetry, reader = call.context.telemetry, call.reader
    sees = reader.sees if reader is not None else lambda label, value: False
    if telemetry.is_small:  # a thread waits longer for its turn where all cores compute
        content, media_type = telemetry.exposition(sees)
    else:
        content, media_type = await call.context.scrapes.once(telemetry.exposition, sees)
    return Response(content, headers={"Content-Type": media_type})


@router.get("/v1/backbone", tags=["backbone"], **asks(READ))
async def backbone(call: Call) -> BackboneInfo:
    """The frozen backbone in memory."""
    runtime, spec = call.runtime, call.runtime.backbone
    return BackboneInfo(
        name=spec.name,
        model_type=spec.model_type.value,
        fingerprint=spec.fingerprint,
        hidden_size=spec.hidden_size,
        num_hidden_layers=spec.num_hidden_layers,
        parameters=spec.parameters,
        device=runtime.device,
        dtype=runtime.dtype,
    )


@router.get("/v1/key", tags=["keys"], **asks(ANY_KEY))
async def key(call: Call) -> KeyInfo:
    """What the caller's key is, and what it may."""
    caller, settings = call.caller, call.context.settings
    grant, quota = caller.grant, Quota.of(caller.grant, settings)
    return KeyInfo(
        id=caller.actor,
        name=caller.name,
        scopes=sorted(grant.scopes),
        adapters=list(grant.adapters),
        domain=grant.domain,
        limits=KeyLimits(
            rate=str(grant.rate) if grant.rate else None,
            concurrency=grant.concurrency,
            domain_mb=settings.max_domain_mb if quota else None,
            domain_versions=settings.max_domain_versions if quota else None,
        ),
    )
