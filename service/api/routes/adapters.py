"""Adapters, their versions and files, as the registry holds them and the device has them; nothing is changed here."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import FileResponse, Response

from service.api.auth import READ, caller_of
from service.api.context import Runtime, context_of
from service.api.openapi import errors
from service.api.problems import problem
from service.api.schemas import (
    AdapterInfo,
    AdapterList,
    Change,
    History,
    Residency,
    VersionDetail,
    VersionInfo,
)
from service.engine.slots import Residence, State
from service.model.spec import TaskType
from service.registry.audit import Event
from service.registry.store import AdapterRecord, AdapterVersion

router: Final = APIRouter(tags=["adapters"])

_READ_CODES: Final = (
    *("unknown_adapter", "unknown_version", "invalid_request", "unauthorized", "forbidden", "not_ready"),
    *("adapter_failed", "registry_unavailable", "overloaded"),
)
_READ: Final[dict[str, Any]] = {"dependencies": [Depends(READ)], "responses": errors(*_READ_CODES)}
_CARD: Final[dict[str, Any]] = _READ | {"responses": errors(*_READ_CODES, "not_found")}


@dataclass(frozen=True, slots=True)
class Search:
    """Which adapters are wanted; None is any.

    Args:
        text: part of the name or of a version's description, upper or lower case.
        state: of any of the versions.
    """

    text: str | None = None
    task: TaskType | None = None
    state: State | None = None

    def wants(self, record: AdapterRecord) -> bool:
        """As far as that shows without the device."""
        if self.task is not None and record.task_type is not self.task:
            return False
        return self.text is None or _mentions(record, self.text.lower())

    def wants_info(self, info: AdapterInfo) -> bool:
        return self.state is None or any(version.state is self.state for version in info.versions)


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
    content = await context.disk.once(page, runtime, records, limit, Search(q, task, state))
    return Response(content, media_type="application/json")


@router.get("/v1/adapters/{name}", **_READ)
async def get_adapter(request: Request, name: str) -> AdapterInfo:
    """One adapter, its versions and aliases."""
    context = context_of(request)
    runtime = context.runtime
    return await context.disk.once(adapter_info, runtime, runtime.registry.record(name))


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
    return history(events, limit)


@router.get("/v1/adapters/{name}/versions/{version}", **_READ)
async def get_version(request: Request, name: str, version: int) -> VersionDetail:
    """What one version is, where the device has it and, where it failed, why."""
    context = context_of(request)
    runtime = context.runtime
    return await context.disk.once(version_detail, runtime, runtime.registry.version(name, version))


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


def page(runtime: Runtime, records: Iterable[AdapterRecord], limit: int | None, search: Search) -> bytes:
    """The first `limit` adapters that are wanted, and where the next page begins: an AdapterList as JSON.

    It may be thousands: each is written by itself, so that no one call keeps the interpreter from everybody else.
    """
    found: list[bytes] = []
    last: str | None = None
    more: str | None = None
    for info in _found(runtime, records, search):
        if limit is not None and len(found) == limit:
            more = last
            break
        found.append(info.model_dump_json().encode())
        last = info.name
    return b'{"adapters":[' + b",".join(found) + b'],"next":' + json.dumps(more).encode() + b"}"


def adapter_info(runtime: Runtime, record: AdapterRecord) -> AdapterInfo:
    places = runtime.engine.device.residences(record.versions)
    return AdapterInfo(
        name=record.name,
        task_type=record.task_type,
        live=record.live,
        aliases=dict(record.aliases),
        versions=[_version(runtime, *pair) for pair in zip(record.versions, places, strict=True)],
    )


def version_detail(runtime: Runtime, version: AdapterVersion) -> VersionDetail:
    """One version: where the device has it, and what its manifest says."""
    manifest = version.manifest
    (place,) = runtime.engine.device.residences([version])
    return VersionDetail(
        **dict(_version(runtime, version, place)),
        name=version.name,
        task_type=manifest.task_type,
        description=manifest.description,
        labels=None if manifest.labels is None else list(manifest.labels),
        input=manifest.input.model_dump(exclude_unset=True),
        parts=manifest.adapter_spec().sizes,
        metrics=manifest.metrics,
        license=manifest.license,
        bytes=len(version.config) + version.weights_bytes,
    )


def residency(runtime: Runtime, version: AdapterVersion) -> Residency:
    (place,) = runtime.engine.device.residences([version])
    return Residency(
        name=version.name, version=version.version, state=place.state, tier=place.tier, pinned=place.is_pinned
    )


def history(events: Sequence[Event], limit: int) -> History:
    """One page of at most `limit` events, of which there may be one more than that."""
    return History(
        history=[
            Change(
                id=event.id or 0,
                at=event.at,
                actor=event.actor,
                action=event.action,
                version=event.version,
                alias=event.alias,
                previous=event.previous,
                digest=event.digest,
            )
            for event in events[:limit]
        ],
        next=str(events[limit - 1].id) if len(events) > limit else None,
    )


def _found(runtime: Runtime, records: Iterable[AdapterRecord], search: Search) -> Iterator[AdapterInfo]:
    for record in records:
        if search.wants(record):
            info = adapter_info(runtime, record)
            if search.wants_info(info):
                yield info


def _mentions(record: AdapterRecord, text: str) -> bool:
    if text in record.name:
        return True
    return any(text in (version.manifest.description or "").lower() for version in record.versions)


def _version(runtime: Runtime, version: AdapterVersion, place: Residence) -> VersionInfo:
    """A version that cannot run on this backbone, or whose files are damaged, has failed before any load."""
    problem = runtime.registry.problem(version) if place.state is State.REGISTERED else None
    return VersionInfo(
        version=version.version,
        digest=version.digest,
        created=version.created,
        state=State.FAILED if problem else place.state,
        verified=version.verified,
        tier=place.tier,
        pinned=place.is_pinned,
        reason=problem or place.failure,
    )
