"""Adapters, their versions and files, as the registry holds them and the device has them; nothing is changed here."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, BinaryIO, Final, Literal, cast

from fastapi import APIRouter, Query
from pydantic import TypeAdapter
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from service.answers import Adapter, AdapterList, Change, History, Residency, Version, VersionDetail
from service.api.auth import READ, asks
from service.api.call import Call
from service.api.context import Runtime
from service.api.problems import problem
from service.engine.slots import Residence, State
from service.model.spec import TaskType
from service.registry.audit import Event
from service.registry.store import AdapterRecord, AdapterVersion

router: Final = APIRouter(tags=["adapters"])

Family = Literal["ipet", "prompt", "adapter", "input-prompt", "prefix", "lora", "dora", "ia3", "bitfit", "linear"]
_CODES: Final = ("unknown_adapter", "unknown_version", "adapter_failed", "registry_unavailable", "overloaded")
_READ: Final = asks(READ, *_CODES)
_CARD: Final = asks(READ, *_CODES, "not_found")
_WEIGHTS: Final = asks(READ, *_CODES, "bad_http", "range_not_satisfiable")


_ADAPTER: Final = TypeAdapter(Adapter)


@dataclass(frozen=True, slots=True)
class Search:
    """Which adapters are wanted; None is any.

    Args:
        text: part of the name or of a version's description, upper or lower case.
        state: of any of the versions, as are `family` and `domain`.
    """

    text: str | None = None
    task: TaskType | None = None
    state: State | None = None
    family: Family | None = None
    domain: str | None = None

    def among(self, runtime: Runtime, records: Iterable[AdapterRecord]) -> Iterator[Adapter]:
        """Those that are wanted; the device is asked of them alone."""
        for record in records:
            if self.task in (None, record.task_type) and (self.text is None or _mentions(record, self.text.lower())):
                info = adapter_info(runtime, record)
                if not (self.state or self.family or self.domain) or any(map(self._wants, info["versions"])):
                    yield info

    def _wants(self, version: Version) -> bool:
        return (
            self.state in (None, version["state"])
            and (self.family is None or self.family in version["families"])
            and self.domain in (None, version["domain"])
        )


@router.get("/v1/adapters", response_model=AdapterList, **_READ)
async def list_adapters(
    call: Call,
    limit: Annotated[int | None, Query(ge=1, description="Adapters in one answer; all without it.")] = None,
    after: Annotated[str, Query(description="`next` of the answer before.")] = "",
    q: Annotated[str | None, Query(max_length=256, description="Part of the name or of a description.")] = None,
    task: Annotated[TaskType | None, Query(description="Only adapters for this task.")] = None,
    state: Annotated[State | None, Query(description="Only adapters with a version in this state.")] = None,
    family: Annotated[Family | None, Query(description="Only adapters with a version that is made of this.")] = None,
    domain: Annotated[str | None, Query(min_length=1, max_length=64, description="Only with a version of it.")] = None,
) -> Response:
    """The adapters that the key is bound to, by name, with where the device has them."""
    runtime, grant = call.runtime, call.caller.grant
    records = (record for record in runtime.registry.walk(after) if grant.covers(record.name))
    content = await call.context.disk.once(page, runtime, records, limit, Search(q, task, state, family, domain))
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}  # of all that is told, where the device has them too
    if headers["ETag"] in call.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json", headers=headers)


@router.get("/v1/adapters/{name}", **_READ)
async def get_adapter(call: Call, name: str) -> Adapter:
    """One adapter, its versions and aliases."""
    return await call.context.disk.once(adapter_info, call.runtime, call.runtime.registry.record(name))


@router.get("/v1/adapters/{name}/history", **_READ)
async def get_history(
    call: Call,
    name: str,
    limit: Annotated[int, Query(ge=1, le=1000, description="Changes in one answer.")] = 100,
    after: Annotated[int | None, Query(ge=1, le=2**62, description="`next` of the answer before.")] = None,
) -> History:
    """Who changed the adapter, when and what, newest first; also of a deleted adapter."""
    events = await call.context.disk.once(call.runtime.registry.history, name, limit + 1, after)
    more = str(events[limit - 1].id) if len(events) > limit else None
    return {"history": [_change(event) for event in events[:limit]], "next": more}


@router.get("/v1/adapters/{name}/versions/{version}", **_READ)
async def get_version(call: Call, name: str, version: int) -> VersionDetail:
    """What one version is, where the device has it and, where it failed, why."""
    return await call.context.disk.once(version_detail, call.runtime, call.runtime.registry.version(name, version))


@router.get("/v1/adapters/{name}/versions/{version}/config", response_class=Response, **_READ)
async def download_config(call: Call, name: str, version: int) -> Response:
    """adapter_config.json, byte for byte."""
    found = call.runtime.registry.version(name, version)
    return Response(found.config, media_type="application/json", headers={"ETag": f'"{found.digest}"'})


@router.get("/v1/adapters/{name}/versions/{version}/weights", response_class=FileResponse, **_WEIGHTS)
async def download_weights(call: Call, name: str, version: int) -> FileResponse:
    """adapter_model.safetensors, byte for byte; a `Range` of it, where one is asked for."""
    found = call.runtime.registry.version(name, version)
    return Download(
        await call.context.disk.once(call.runtime.registry.whole_weights, found),
        media_type="application/octet-stream",
        filename="adapter_model.safetensors",
        headers={"ETag": f'"{found.digest}"'},
    )


@router.get("/v1/adapters/{name}/versions/{version}/card", response_class=Response, **_CARD)
async def download_card(call: Call, name: str, version: int) -> Response:
    """README.md, the model card, byte for byte; `not_found` where the version came without one."""
    found = call.runtime.registry.version(name, version)
    card = await call.context.disk.once(call.runtime.registry.card_bytes, found)
    if card is None:
        return problem("not_found", f"{found.reference} came without a card")
    return Response(card, headers={"ETag": f'"{found.digest}"', "Content-Type": "text/markdown; charset=utf-8"})


class Download(FileResponse):
    """An open file, whole or in ranges, also where its name goes meanwhile; it is closed in the end.

    A bad `Range`, which Starlette would answer in plain text, is a problem.
    """

    def __init__(self, file: BinaryIO, **more: Any) -> None:
        super().__init__(f"/dev/fd/{file.fileno()}", **more)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal: Response | None = None

        async def send_file(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] >= 400:
                told = {name.decode(): value.decode() for name, value in message["headers"] if name == b"content-range"}
                if message["status"] == 416:
                    refusal = problem("range_not_satisfiable", "the file has no such bytes; see Content-Range", told)
                else:
                    refusal = problem("bad_http", "Range is not of the form bytes=0-99 (RFC 9110, section 14.2)")
            if refusal is None:
                await send(message)

        with self._file:
            await super().__call__(scope, receive, send_file)
        if refusal is not None:
            await refusal(scope, receive, send)


def page(runtime: Runtime, records: Iterable[AdapterRecord], limit: int | None, search: Search) -> bytes:
    """The first `limit` adapters that are wanted, and where the next page begins: an AdapterList as JSON.

    It may be thousands: each is written by itself, so that no one call keeps the interpreter from everybody else.
    """
    found: list[bytes] = []
    last = more = None
    for info in search.among(runtime, records):
        if len(found) == limit:
            more = last
            break
        found.append(_ADAPTER.dump_json(info))
        last = info["name"]
    return b'{"adapters":[' + b",".join(found) + b'],"next":' + json.dumps(more).encode() + b"}"


def adapter_info(runtime: Runtime, record: AdapterRecord) -> Adapter:
    places = runtime.engine.device.residences(record.versions)
    return Adapter(
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
        **_version(runtime, version, place),
        name=version.name,
        task_type=manifest.task_type.value,
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
    told = {"state": place.state.value, "tier": place.tier.value, "pinned": place.is_pinned}
    return cast(Residency, {"name": version.name, "version": version.version, **told})


def _mentions(record: AdapterRecord, text: str) -> bool:
    if text in record.name:
        return True
    return any(text in (version.manifest.description or "").lower() for version in record.versions)


def _version(runtime: Runtime, version: AdapterVersion, place: Residence) -> Version:
    """A version that cannot run on this backbone, or whose files are damaged, has failed before any load."""
    problem = runtime.registry.problem(version) if place.state is State.REGISTERED else None
    return Version(
        version=version.version,
        digest=version.digest,
        created=_utc(version.created),
        state=State.FAILED.value if problem else place.state.value,
        verified=version.verified,
        tier=place.tier.value,
        pinned=place.is_pinned,
        reason=problem or place.failure,
        families=version.manifest.adapter_spec().families,
        domain=version.domain,
    )


def _change(event: Event) -> Change:
    told = {name: getattr(event, name) for name in Change.__annotations__}
    return cast(Change, {**told, "at": _utc(event.at)})


def _utc(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
