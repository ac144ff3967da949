"""What changes adapters: uploads, aliases, deletions, residency on the device, each by the request's deadline."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from service.access.keys import Scope
from service.access.quotas import Quota
from service.answers import Adapter, Residency, Uploaded
from service.api.adapters import adapter_info, residency
from service.api.auth import ADMIN, WRITE, asks
from service.api.bodies import Piece, stream_parts
from service.api.call import Call
from service.api.long_json import parse_json
from service.api.openapi import BYTES, body, form
from service.deadline import Deadline
from service.engine.device import Device
from service.errors import Forbidden, ServiceError
from service.exchange.bundles import convert_bundle
from service.registry.store import AdapterVersion
from service.registry.upload import PARTS, Convert, Upload

router: Final = APIRouter(tags=["adapters"])

MAX_ALIAS_BYTES: Final = 2**17
_FLUSH_BYTES: Final = 2**18  # held in memory before they are written
_DRAIN_SECONDS: Final = 2.0  # for the rest of a refused body, so that its sender gets to read the answer
_CODES: Final = (
    *("unknown_adapter", "backbone_mismatch", "storage_full", "payload_too_large", "registry_unavailable"),
    "overloaded",
)
_WRITE: Final = asks(WRITE, *_CODES, "unknown_version", "version_is_live", "no_free_slot", "adapter_failed")
_PIN: Final = _WRITE | {"dependencies": [Depends(ADMIN)]}  # takes a slot from everyone
_UPLOAD: Final = asks(WRITE, *_CODES, "invalid_bundle", "wrong_task")
_UPLOAD["responses"][200] = {
    "description": "These bytes were uploaded before; nothing changed.",
    "model": Uploaded,
}


class AliasRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1)


_BUNDLE_BODY: Final = body(
    {"multipart/form-data": form("config", "weights", config=BYTES, weights=BYTES, card=BYTES)},
    "adapter_config.json, adapter_model.safetensors and optionally README.md.",
)


@router.post(
    "/v1/adapters/{name}/versions",
    status_code=201,
    response_model=Uploaded,
    openapi_extra=_BUNDLE_BODY,
    **_UPLOAD,
)
async def upload_version(
    call: Call,
    name: str,
    activate: Annotated[bool, Query(description="Make the version live; a first version always is.")] = True,
    convert: Annotated[
        bool, Query(description="PEFT saved it on this backbone; `labels`, `window_frames` may be added to its config.")
    ] = False,
    idempotency_key: Annotated[
        str | None,
        Header(description="Of the caller's choice: a retry with it is answered as the first try was, for a week."),
    ] = None,
) -> Response:
    """Stores a bundle as the adapter's next version, once it is whole, fits the backbone and has run on it."""
    registry, caller, context = call.runtime.registry, call.caller, call.context
    with call.writing(context.writers):  # too many writers are told before the body is read
        upload = registry.receive(name, _converter(call) if convert else None)
        try:
            await receive_bundle(call, upload)
            published = await call.change(
                context.writers,
                lambda deadline: registry.publish_upload(
                    upload,
                    activate=activate,
                    actor=caller.actor,
                    key=idempotency_key,
                    domain=caller.grant.domain,
                    quota=Quota.of(caller.grant, context.settings),
                    deadline=deadline,
                ),
            )
        except BaseException:
            await context.disk.run(upload.discard)
            raise
        # Nothing is waited for once a change is made: a deadline that fell into it would deny what has happened.
    version = published.version
    answer = Uploaded(name=version.name, version=version.version, digest=version.digest, live=published.live)
    headers = (
        {"Location": f"/v1/adapters/{version.name}/versions/{version.version}/config"} if published.created else {}
    )
    if published.replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(json.dumps(answer), 201 if published.created else 200, headers, media_type="application/json")


def _converter(call: Call) -> Convert:
    base = call.runtime.backbone.name
    return lambda directory, name: convert_bundle(directory, name, base)


@router.put("/v1/adapters/{name}/aliases/{alias}", openapi_extra=body({"application/json": AliasRequest}), **_WRITE)
async def set_alias(call: Call, name: str, alias: str) -> Adapter:
    """Points an alias at a version. `live` is what the bare name means: this rolls forward or back at once."""
    runtime, actor = call.runtime, call.caller.actor

    def move(deadline: Deadline) -> Adapter:
        return adapter_info(runtime, runtime.registry.set_alias(name, alias, wanted.version, actor, deadline))

    with call.writing(call.context.writers):
        wanted = parse_json(await call.read(MAX_ALIAS_BYTES), AliasRequest)
        return await call.change(call.context.writers, move)


@router.delete("/v1/adapters/{name}/aliases/{alias}", status_code=204, **_WRITE)
async def delete_alias(call: Call, name: str, alias: str) -> None:
    """Removes an alias; `live` cannot be removed."""
    registry, actor = call.runtime.registry, call.caller.actor
    await _delete(call, (), lambda deadline: registry.delete_alias(name, alias, actor, deadline))


@router.delete("/v1/adapters/{name}/versions/{version}", status_code=204, **_WRITE)
async def delete_version(call: Call, name: str, version: int) -> None:
    """Deletes a version that is not live, for good: its number is never used again."""
    registry, actor = call.runtime.registry, call.caller.actor
    gone = [one for one in registry.record(name).versions if one.version == version]
    await _delete(call, gone, lambda deadline: registry.delete_version(name, version, actor, deadline))


@router.delete("/v1/adapters/{name}", status_code=204, **_WRITE)
async def delete_adapter(call: Call, name: str) -> None:
    """Deletes an adapter with all its versions and aliases; requests admitted before finish."""
    registry, actor = call.runtime.registry, call.caller.actor
    gone = registry.record(name).versions
    await _delete(call, gone, lambda deadline: registry.delete_adapter(name, actor, deadline))


@router.post("/v1/adapters/{name}/load", **_WRITE)
async def load(call: Call, name: str) -> Residency:
    """Loads a version (`name`, `name@2`, `name@alias`) into a slot now rather than at its first request."""
    return await _reside(call, name, lambda device, version: device.load(version))


@router.post("/v1/adapters/{name}/unload", **_WRITE)
async def unload(call: Call, name: str) -> Residency:
    """Frees the version's slot; the next request for it loads it again. Of a pinned version, only `admin` may."""
    _require_unpinned(call, [call.runtime.registry.resolve(name)])
    return await _reside(call, name, lambda device, version: device.unload(version))


@router.post("/v1/adapters/{name}/pin", **_PIN)
async def pin(call: Call, name: str) -> Residency:
    """Loads the version and keeps it in its slot."""
    return await _reside(call, name, lambda device, version: device.pin(version))


@router.post("/v1/adapters/{name}/unpin", **_PIN)
async def unpin(call: Call, name: str) -> Residency:
    """Lets the version be evicted again."""
    return await _reside(call, name, lambda device, version: device.unpin(version))


async def _delete(call: Call, versions: Sequence[AdapterVersion], delete: Callable[[Deadline], object]) -> None:
    """Deletes what holds `versions`, none of which may be pinned. Raises Overloaded: too many write already."""
    with call.writing(call.context.writers):
        _require_unpinned(call, versions)
        await call.change(call.context.writers, delete)


async def _reside(call: Call, reference: str, change: Callable[[Device, AdapterVersion], Awaitable[None]]) -> Residency:
    version = call.runtime.registry.resolve(reference)
    await change(call.runtime.engine.device, version)
    return residency(call.runtime, version)


def _require_unpinned(call: Call, versions: Sequence[AdapterVersion]) -> None:
    """Raises Forbidden where a caller without `admin` would end a pin, which is an administrator's."""
    if call.caller.grant.allows(Scope.ADMIN):
        return
    for version, place in zip(versions, call.runtime.engine.device.residences(versions), strict=True):
        if place.is_pinned:
            raise Forbidden(
                f"{version.reference} is pinned, and only a key with the scope admin may end that",
                adapter=version.reference,
            )


async def receive_bundle(call: Call, upload: Upload) -> None:
    """Reads the parts `config`, `weights` and `card` into `upload`, which looks at them as they come.

    Raises:
        InvalidRequest: not multipart, or other parts.
        InvalidBundle, BackboneMismatch: what has arrived so far is refused; the rest is not looked at.
        PayloadTooLarge, StorageFull: too large for the service, or for its disk.
    """
    refusals: list[ServiceError] = []
    try:
        async with asyncio.timeout(None) as timer:
            await _receive(call, upload, timer, refusals)
    except (ServiceError, TimeoutError):
        if not refusals:
            raise
    if refusals:
        raise refusals[0]


async def _receive(call: Call, upload: Upload, timer: asyncio.Timeout, refusals: list[ServiceError]) -> None:
    """Reads to the body's end; once there is a refusal, without looking and for a moment only."""
    waiting: list[Piece] = []
    size = 0

    async def flush() -> None:
        try:
            await call.context.disk.run(_write, upload, waiting)
        except ServiceError as error:
            refusals.append(error)
            timer.reschedule(asyncio.get_running_loop().time() + _DRAIN_SECONDS)

    async for piece in stream_parts(call, PARTS, len(PARTS), call.context.settings.max_body_bytes):
        if refusals:
            continue
        waiting.append(piece)
        size += len(piece.content)
        if (piece.begins and len(waiting) > 1) or size >= _FLUSH_BYTES:  # a part is judged as the next one begins
            await flush()
            waiting, size = [], 0
    if not refusals:
        await flush()


def _write(upload: Upload, pieces: Sequence[Piece]) -> None:
    for piece in pieces:
        if piece.begins:
            upload.begin(piece.name)
        upload.write(piece.name, piece.content)
