"""The caller's own key."""

from typing import Final

from fastapi import APIRouter, Depends, Request

from service.access.quotas import Quota
from service.api.auth import ANY_KEY, caller_of
from service.api.context import context_of
from service.api.openapi import errors
from service.api.schemas import KeyInfo, KeyLimits

router: Final = APIRouter(tags=["keys"])

_ERRORS: Final = errors("invalid_request", "unauthorized", "forbidden", "not_ready")


@router.get(
    "/v1/key",
    dependencies=[Depends(ANY_KEY)],
    responses=_ERRORS,
)
async def key(request: Request) -> KeyInfo:
    """What the caller's key is, and what it may."""
    caller, settings = caller_of(request), context_of(request).settings
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
