"""Adapters, their versions and aliases: what the registry holds and what the device does."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from service.api.auth import ADMIN, READ, WRITE, caller_of
from service.api.bodies import MAX_JSON_BYTES, parse_json, read_body, read_parts
from service.api.context import Runtime, context_of
from service.api.lifetime import admitted
from service.api.openapi import ALIAS_BODY, BUNDLE_BODY, errors
from service.api.schemas import (
    AdapterInfo,
    AdapterList,
    AliasRequest,
    Residency,
    Uploaded,
    VersionInfo,
)
from service.engine.slots import State
from service.errors import InvalidRequest
from service.registry.store import AdapterRecord, AdapterVersion

router: Final = APIRouter(tags=["adapters"])

_READ: Final[dict[str, Any]] = {
    "dependencies": [Depends(READ)],
    "responses": errors(
        "unknown_adapter", "unknown_version", "invalid_request", "unauthorized", "forbidden", "not_ready"
    ),
}
_WRITE: Final[dict[str, Any]] = {
    "dependencies": [Depends(WRITE)],
    "responses": errors(
        *("unknown_adapter", "unknown_version", "invalid_request", "version_is_live", "no_free_slot"),
        *("adapter_failed", "backbone_mismatch", "unauthorized", "forbidden", "not_ready", "storage_full"),
        *("payload_too_large", "deadline_exceeded"),
    ),
}
_PIN: Final[dict[str, Any]] = _WRITE | {"dependencies": [Depends(ADMIN)]}  # takes a slot from everyone


@router.get("/v1/adapters", **_READ)
def list_adapters(
    request: Request,
    limit: Annotated[int | None, Query(ge=1, description="Adapters in one answer; all without it.")] = None,
    after: Annotated[str | None, Query(description="`next` of the answer before.")] = None,
) -> AdapterList:
    """Every adapter that the key is bound to, by name."""
    runtime, grant = context_of(request).runtime, caller_of(request).grant
    records = [record for record in runtime.registry.records() if grant.covers(record.name)]
    if after is not None:
        records = [record for record in records if record.name > after]
    page = records if limit is None else records[:limit]
    following = page[-1].name if page and len(page) < len(records) else None
    return AdapterList(adapters=[_info(runtime, record) for record in page], next=following)


@router.get("/v1/adapters/{name}", **_READ)
def get_adapter(request: Request, name: str) -> AdapterInfo:
    """One adapter, its versions and aliases."""
    runtime = context_of(request).runtime
    return _info(runtime, runtime.registry.record(name))


@router.post(
    "/v1/adapters/{name}/versions",
    dependencies=[Depends(WRITE)],
    status_code=201,
    response_model=Uploaded,
    responses={
        200: {"description": "These bytes were uploaded before; nothing changed.", "model": Uploaded},
        **errors(
            *(
                "invalid_request",
                "invalid_bundle",
                "backbone_mismatch",
                "wrong_task",
                "payload_too_large",
                "overloaded",
            ),
            *("unknown_adapter", "unauthorized", "forbidden", "not_ready", "storage_full", "deadline_exceeded"),
        ),
    },
    openapi_extra=BUNDLE_BODY,
)
async def upload_version(
    request: Request,
    name: str,
    activate: Annotated[bool, Query(description="Make the version live; a first version always is.")] = True,
) -> Response:
    """Stores a bundle as the adapter's next version."""
    async with admitted(request) as admission:
        limit = admission.context.settings.max_body_bytes
        parts = await read_parts(request, ("config", "weights", "card"), 3, limit, admission.reservation)
        bundle = dict(parts)
        missing = [part for part in ("config", "weights") if part not in bundle]
        if missing or len(bundle) != len(parts):
            fault = f"lacks {' and '.join(missing)}" if missing else "repeats a part"
            raise InvalidRequest(f"a bundle is one part 'config', one 'weights' and maybe one 'card'; this {fault}")
        registry = admission.runtime.registry
        published = await run_in_threadpool(
            registry.publish, name, bundle["config"], bundle["weights"], bundle.get("card"), activate=activate
        )
    version = published.version
    answer = Uploaded(name=version.name, version=version.version, digest=version.digest, live=published.live)
    location = f"/v1/adapters/{version.name}/versions/{version.version}/config"
    return Response(
        answer.model_dump_json(),
        201 if published.created else 200,
        {"Location": location} if published.created else None,
        media_type="application/json",
    )


@router.get("/v1/adapters/{name}/versions/{version}/config", response_class=Response, **_READ)
def download_config(request: Request, name: str, version: int) -> Response:
    """adapter_config.json, byte for byte."""
    registry = context_of(request).runtime.registry
    found = registry.version(name, version)
    return Response(registry.config_bytes(found), media_type="application/json", headers={"ETag": f'"{found.digest}"'})


@router.get("/v1/adapters/{name}/versions/{version}/weights", response_class=FileResponse, **_READ)
def download_weights(request: Request, name: str, version: int) -> FileResponse:
    """adapter_model.safetensors, byte for byte."""
    registry = context_of(request).runtime.registry
    found = registry.version(name, version)
    return FileResponse(
        registry.weights_path(found),
        media_type="application/octet-stream",
        filename="adapter_model.safetensors",
        headers={"ETag": f'"{found.digest}"'},
    )


@router.put("/v1/adapters/{name}/aliases/{alias}", openapi_extra=ALIAS_BODY, **_WRITE)
async def set_alias(request: Request, name: str, alias: str) -> AdapterInfo:
    """Points an alias at a version. `live` is what the bare name means: this rolls forward or back at once."""
    async with admitted(request) as admission:  # as a parameter, the body would be read whole, before any key is asked
        body = await read_body(request, MAX_JSON_BYTES, admission.reservation)
        wanted = parse_json(body, AliasRequest)
        runtime = admission.runtime
        record = await run_in_threadpool(runtime.registry.set_alias, name, alias, wanted.version)
    return await run_in_threadpool(_info, runtime, record)


@router.delete("/v1/adapters/{name}/aliases/{alias}", status_code=204, **_WRITE)
def delete_alias(request: Request, name: str, alias: str) -> None:
    """Removes an alias; `live` cannot be removed."""
    context_of(request).runtime.registry.delete_alias(name, alias)


@router.delete("/v1/adapters/{name}/versions/{version}", status_code=204, **_WRITE)
async def delete_version(request: Request, name: str, version: int) -> None:
    """Deletes a version that is not live, for good: its number is never used again."""
    runtime = context_of(request).runtime
    found = [one for one in runtime.registry.record(name).versions if one.version == version]
    await run_in_threadpool(runtime.registry.delete_version, name, version)
    await _evict(runtime, found)


@router.delete("/v1/adapters/{name}", status_code=204, **_WRITE)
async def delete_adapter(request: Request, name: str) -> None:
    """Deletes an adapter with all its versions and aliases."""
    runtime = context_of(request).runtime
    versions = runtime.registry.record(name).versions
    await run_in_threadpool(runtime.registry.delete_adapter, name)
    await _evict(runtime, versions)


@router.post("/v1/adapters/{name}/load", **_WRITE)
async def load(request: Request, name: str) -> Residency:
    """Loads a version (`name`, `name@2`, `name@alias`) into a slot now rather than at its first request."""
    runtime, version = _named(request, name)
    await runtime.engine.load(version)
    return _residency(runtime, version)


@router.post("/v1/adapters/{name}/unload", **_WRITE)
async def unload(request: Request, name: str) -> Residency:
    """Frees the version's slot; the next request for it loads it again."""
    runtime, version = _named(request, name)
    await runtime.engine.unload(version)
    return _residency(runtime, version)


@router.post("/v1/adapters/{name}/pin", **_PIN)
async def pin(request: Request, name: str) -> Residency:
    """Loads the version and keeps it in its slot."""
    runtime, version = _named(request, name)
    await runtime.engine.pin(version)
    return _residency(runtime, version)


@router.post("/v1/adapters/{name}/unpin", **_PIN)
async def unpin(request: Request, name: str) -> Residency:
    """Lets the version be evicted again."""
    runtime, version = _named(request, name)
    await runtime.engine.unpin(version)
    return _residency(runtime, version)


def _named(request: Request, reference: str) -> tuple[Runtime, AdapterVersion]:
    runtime = context_of(request).runtime
    return runtime, runtime.registry.resolve(reference)


async def _evict(runtime: Runtime, versions: Sequence[AdapterVersion]) -> None:
    """Frees what deleted versions hold of the device; requests admitted before finish on them."""
    for version in versions:
        await runtime.engine.unload(version)


def _state(runtime: Runtime, version: AdapterVersion) -> State:
    """Where the version is; one that cannot run on this backbone has failed before any load."""
    state = runtime.engine.residency(version)
    return State.FAILED if state is State.REGISTERED and runtime.registry.problem(version) else state


def _residency(runtime: Runtime, version: AdapterVersion) -> Residency:
    return Residency(name=version.name, version=version.version, state=runtime.engine.residency(version))


def _info(runtime: Runtime, record: AdapterRecord) -> AdapterInfo:
    return AdapterInfo(
        name=record.name,
        task_type=record.task_type,
        live=record.live,
        aliases=dict(record.aliases),
        versions=[
            VersionInfo(
                version=version.version,
                digest=version.digest,
                created=version.created,
                state=_state(runtime, version),
                verified=version.verified,
            )
            for version in record.versions
        ],
    )
