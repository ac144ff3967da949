"""What changes adapters: uploads, aliases, deletions, residency on the device, each by the request's deadline."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response

from service.access.keys import Scope
from service.access.quotas import Quota
from service.api.auth import ADMIN, WRITE, caller_of
from service.api.bodies import Piece, read_body, stream_parts
from service.api.context import Runtime, context_of
from service.api.lifetime import Admission, admitted
from service.api.long_json import parse_json
from service.api.openapi import ALIAS_BODY, BUNDLE_BODY, errors
from service.api.pools import Pool
from service.api.routes.adapters import adapter_info, residency
from service.api.schemas import AdapterInfo, AliasRequest, Residency, Uploaded
from service.deadline import Deadline
from service.engine.local import LocalDevice
from service.errors import Forbidden, ServiceError
from service.registry.store import AdapterVersion
from service.registry.upload import PARTS, Upload

router: Final = APIRouter(tags=["adapters"])

MAX_ALIAS_BYTES: Final = 2**17
_FLUSH_BYTES: Final = 2**18  # held in memory before they are written
_DRAIN_SECONDS: Final = 2.0  # for the rest of a refused body, so that its sender gets to read the answer
_WRITE: Final[dict[str, Any]] = {
    "dependencies": [Depends(WRITE)],
    "responses": errors(
        *("unknown_adapter", "unknown_version", "invalid_request", "version_is_live", "no_free_slot"),
        *("adapter_failed", "backbone_mismatch", "unauthorized", "forbidden", "not_ready", "storage_full"),
        *("payload_too_large", "deadline_exceeded", "registry_unavailable", "overloaded"),
    ),
}
_PIN: Final[dict[str, Any]] = _WRITE | {"dependencies": [Depends(ADMIN)]}  # takes a slot from everyone


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
            return adapter_info(runtime, record)

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
        return residency(runtime, version)


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
