"""Adapters, their versions and aliases: what the registry holds and what the device does."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import FileResponse, Response

from service.access.keys import Scope
from service.access.quotas import Quota
from service.api import listing
from service.api.auth import ADMIN, READ, WRITE, caller_of
from service.api.bodies import read_body
from service.api.context import Runtime, context_of
from service.api.lifetime import Admission, admitted
from service.api.listing import Search
from service.api.long_json import parse_json
from service.api.openapi import ALIAS_BODY, BUNDLE_BODY, errors
from service.api.pools import Pool
from service.api.problems import problem
from service.api.schemas import AdapterInfo, AdapterList, AliasRequest, History, Residency, Uploaded, VersionDetail
from service.api.uploads import receive_bundle
from service.deadline import Deadline
from service.engine.local import LocalDevice
from service.engine.slots import State
from service.errors import Forbidden
from service.model.spec import TaskType
from service.registry.store import AdapterVersion

router: Final = APIRouter(tags=["adapters"])

MAX_ALIAS_BYTES: Final = 2**17
_READ_CODES: Final = (
    *("unknown_adapter", "unknown_version", "invalid_request", "unauthorized", "forbidden", "not_ready"),
    *("adapter_failed", "registry_unavailable", "overloaded"),
)
_READ: Final[dict[str, Any]] = {"dependencies": [Depends(READ)], "responses": errors(*_READ_CODES)}
_CARD: Final[dict[str, Any]] = _READ | {"responses": errors(*_READ_CODES, "not_found")}
_WRITE: Final[dict[str, Any]] = {
    "dependencies": [Depends(WRITE)],
    "responses": errors(
        *("unknown_adapter", "unknown_version", "invalid_request", "version_is_live", "no_free_slot"),
        *("adapter_failed", "backbone_mismatch", "unauthorized", "forbidden", "not_ready", "storage_full"),
        *("payload_too_large", "deadline_exceeded", "registry_unavailable", "overloaded"),
    ),
}
_PIN: Final[dict[str, Any]] = _WRITE | {"dependencies": [Depends(ADMIN)]}  # takes a slot from everyone


@router.get("/v1/adapters", response_model=AdapterList, **_READ)
async def list_adapters(
    request: Request,
    limit: Annotated[int | None, Query(ge=1, description="Adapters in one answer; all without it.")] = None,
    after: Annotated[str, Query(description="`next` of the answer before.")] = "",
    q: Annotated[str | None, Query(max_length=256, description="Part of the name or of a description.")] = None,
    task: Annotated[TaskType | None, Query(description="Only adapters for this task.")] = None,
    state: Annotated[State | None, Query(description="Only adapters with a version in this state.")] = None,
) -> Response:
    """The adapters that the key is bound to, by name, with where the device has them."""
    context, grant = context_of(request), caller_of(request).grant
    runtime = context.runtime
    records = (record for record in runtime.registry.walk(after) if grant.covers(record.name))
    content = await context.disk.once(listing.page, runtime, records, limit, Search(q, task, state))
    return Response(content, media_type="application/json")


@router.get("/v1/adapters/{name}", **_READ)
async def get_adapter(request: Request, name: str) -> AdapterInfo:
    """One adapter, its versions and aliases."""
    context = context_of(request)
    runtime = context.runtime
    return await context.disk.once(listing.adapter_info, runtime, runtime.registry.record(name))


@router.get("/v1/adapters/{name}/history", **_READ)
async def get_history(
    request: Request,
    name: str,
    limit: Annotated[int, Query(ge=1, le=1000, description="Changes in one answer.")] = 100,
    after: Annotated[int | None, Query(ge=1, le=2**62, description="`next` of the answer before.")] = None,
) -> History:
    """Who changed the adapter, when and what, newest first; also of a deleted adapter."""
    context = context_of(request)
    events = await context.disk.once(context.runtime.registry.history, name, limit + 1, after)
    return listing.history(events, limit)


@router.post(
    "/v1/adapters/{name}/versions",
    dependencies=[Depends(WRITE)],
    status_code=201,
    response_model=Uploaded,
    responses={
        200: {"description": "These bytes were uploaded before; nothing changed.", "model": Uploaded},
        **errors(
            *("invalid_request", "invalid_bundle", "backbone_mismatch", "wrong_task", "payload_too_large"),
            *("unknown_adapter", "unauthorized", "forbidden", "not_ready", "storage_full", "deadline_exceeded"),
            *("registry_unavailable", "overloaded"),
        ),
    },
    openapi_extra=BUNDLE_BODY,
)
async def upload_version(
    request: Request,
    name: str,
    activate: Annotated[bool, Query(description="Make the version live; a first version always is.")] = True,
    idempotency_key: Annotated[
        str | None,
        Header(description="Of the caller's choice: a retry with it is answered as the first try was, for a week."),
    ] = None,
) -> Response:
    """Stores a bundle as the adapter's next version, once it is whole, fits the backbone and has run on it."""
    async with writing(request) as (admission, writers):
        registry, disk = admission.runtime.registry, admission.context.disk
        upload = registry.receive(name)
        try:
            await receive_bundle(admission, upload)
            caller = caller_of(request)
            published = await writers.change(
                admission.deadline,
                lambda deadline: registry.publish_upload(
                    upload,
                    activate=activate,
                    actor=caller.actor,
                    key=idempotency_key,
                    domain=caller.grant.domain,
                    quota=Quota.of(caller.grant, admission.context.settings),
                    deadline=deadline,
                ),
            )
        except BaseException:
            await disk.run(upload.discard)
            raise
        # Nothing is waited for once a change is made: a deadline that fell into it would deny what has happened.
    version = published.version
    answer = Uploaded(name=version.name, version=version.version, digest=version.digest, live=published.live)
    headers = (
        {"Location": f"/v1/adapters/{version.name}/versions/{version.version}/config"} if published.created else {}
    )
    if published.replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(answer.model_dump_json(), 201 if published.created else 200, headers, media_type="application/json")


@router.get("/v1/adapters/{name}/versions/{version}", **_READ)
async def get_version(request: Request, name: str, version: int) -> VersionDetail:
    """What one version is, where the device has it and, where it failed, why."""
    context = context_of(request)
    runtime = context.runtime
    return await context.disk.once(listing.version_detail, runtime, runtime.registry.version(name, version))


@router.get("/v1/adapters/{name}/versions/{version}/config", response_class=Response, **_READ)
async def download_config(request: Request, name: str, version: int) -> Response:
    """adapter_config.json, byte for byte."""
    registry = context_of(request).runtime.registry
    found = registry.version(name, version)
    return Response(registry.config_bytes(found), media_type="application/json", headers={"ETag": f'"{found.digest}"'})


@router.get("/v1/adapters/{name}/versions/{version}/weights", response_class=FileResponse, **_READ)
async def download_weights(request: Request, name: str, version: int) -> FileResponse:
    """adapter_model.safetensors, byte for byte."""
    context = context_of(request)
    registry = context.runtime.registry
    found = registry.version(name, version)
    return FileResponse(
        await context.disk.once(registry.whole_weights, found),
        media_type="application/octet-stream",
        filename="adapter_model.safetensors",
        headers={"ETag": f'"{found.digest}"'},
    )


@router.get("/v1/adapters/{name}/versions/{version}/card", response_class=Response, **_CARD)
async def download_card(request: Request, name: str, version: int) -> Response:
    """README.md, the model card, byte for byte; `not_found` where the version came without one."""
    context = context_of(request)
    registry = context.runtime.registry
    found = registry.version(name, version)
    card = await context.disk.once(registry.card_bytes, found)
    if card is None:
        return problem("not_found", f"{found.reference} came without a card")
    return Response(card, headers={"ETag": f'"{found.digest}"', "Content-Type": "text/markdown; charset=utf-8"})


@router.put("/v1/adapters/{name}/aliases/{alias}", openapi_extra=ALIAS_BODY, **_WRITE)
async def set_alias(request: Request, name: str, alias: str) -> AdapterInfo:
    """Points an alias at a version. `live` is what the bare name means: this rolls forward or back at once."""
    async with writing(request) as (admission, writers):
        # As a parameter, the body would be read whole, before any key is asked.
        body = await read_body(request, MAX_ALIAS_BYTES, admission.reservation)
        wanted = parse_json(body, AliasRequest)
        runtime, actor = admission.runtime, caller_of(request).actor

        def move(deadline: Deadline) -> AdapterInfo:
            record = runtime.registry.set_alias(name, alias, wanted.version, actor, deadline)
            return listing.adapter_info(runtime, record)

        return await writers.change(admission.deadline, move)


@router.delete("/v1/adapters/{name}/aliases/{alias}", status_code=204, **_WRITE)
async def delete_alias(request: Request, name: str, alias: str) -> None:
    """Removes an alias; `live` cannot be removed."""
    async with writing(request) as (admission, writers):
        registry, actor = admission.runtime.registry, caller_of(request).actor
        await writers.change(admission.deadline, lambda deadline: registry.delete_alias(name, alias, actor, deadline))


@router.delete("/v1/adapters/{name}/versions/{version}", status_code=204, **_WRITE)
async def delete_version(request: Request, name: str, version: int) -> None:
    """Deletes a version that is not live, for good: its number is never used again."""
    async with writing(request) as (admission, writers):
        runtime, actor = admission.runtime, caller_of(request).actor
        _require_unpinned(
            request, runtime, [one for one in runtime.registry.record(name).versions if one.version == version]
        )
        await writers.change(
            admission.deadline, lambda deadline: runtime.registry.delete_version(name, version, actor, deadline)
        )


@router.delete("/v1/adapters/{name}", status_code=204, **_WRITE)
async def delete_adapter(request: Request, name: str) -> None:
    """Deletes an adapter with all its versions and aliases; requests admitted before finish."""
    async with writing(request) as (admission, writers):
        runtime, actor = admission.runtime, caller_of(request).actor
        _require_unpinned(request, runtime, runtime.registry.record(name).versions)
        await writers.change(
            admission.deadline, lambda deadline: runtime.registry.delete_adapter(name, actor, deadline)
        )


@router.post("/v1/adapters/{name}/load", **_WRITE)
async def load(request: Request, name: str) -> Residency:
    """Loads a version (`name`, `name@2`, `name@alias`) into a slot now rather than at its first request."""
    return await _reside(request, name, LocalDevice.load)


@router.post("/v1/adapters/{name}/unload", **_WRITE)
async def unload(request: Request, name: str) -> Residency:
    """Frees the version's slot; the next request for it loads it again. Of a pinned version, only `admin` may."""
    runtime = context_of(request).runtime
    _require_unpinned(request, runtime, [runtime.registry.resolve(name)])
    return await _reside(request, name, LocalDevice.unload)


@router.post("/v1/adapters/{name}/pin", **_PIN)
async def pin(request: Request, name: str) -> Residency:
    """Loads the version and keeps it in its slot."""
    return await _reside(request, name, LocalDevice.pin)


@router.post("/v1/adapters/{name}/unpin", **_PIN)
async def unpin(request: Request, name: str) -> Residency:
    """Lets the version be evicted again."""
    return await _reside(request, name, LocalDevice.unpin)


def _require_unpinned(request: Request, runtime: Runtime, versions: Sequence[AdapterVersion]) -> None:
    """Raises Forbidden where a caller without `admin` would end a pin, which is an administrator's."""
    if caller_of(request).grant.allows(Scope.ADMIN):
        return
    for version, place in zip(versions, runtime.engine.device.residences(versions), strict=True):
        if place.is_pinned:
            raise Forbidden(
                f"{version.reference} is pinned, and only a key with the scope admin may end that",
                adapter=version.reference,
            )


@asynccontextmanager
async def writing(request: Request) -> AsyncIterator[tuple[Admission, Pool]]:
    """A request that changes adapters: until its deadline, with a place among the writers.

    Raises:
        Overloaded: too many write already; told before the body is read.
    """
    async with admitted(request) as admission:
        with admission.context.writers.place():
            yield admission, admission.context.writers


async def _reside(
    request: Request, reference: str, change: Callable[[LocalDevice, AdapterVersion], Awaitable[None]]
) -> Residency:
    async with admitted(request) as admission:
        runtime = admission.runtime
        version = runtime.registry.resolve(reference)
        await change(runtime.engine.device, version)
        return listing.residency(runtime, version)
