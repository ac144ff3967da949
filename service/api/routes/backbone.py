"""What the service runs its adapters on."""

from typing import Final

from fastapi import APIRouter, Depends, Request

from service.api.auth import READ
from service.api.context import context_of
from service.api.openapi import errors
from service.api.schemas import BackboneInfo

router: Final = APIRouter(tags=["backbone"])

_ERRORS: Final = errors("invalid_request", "unauthorized", "forbidden", "not_ready")


@router.get(
    "/v1/backbone",
    dependencies=[Depends(READ)],
    responses=_ERRORS,
)
async def backbone(request: Request) -> BackboneInfo:
    """The frozen backbone in memory."""
    runtime = context_of(request).runtime
    spec = runtime.backbone
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
