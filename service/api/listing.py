"""Adapters as the API shows them: what the registry holds, where the device has it, and pages of both."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from service.api.context import Runtime
from service.api.schemas import AdapterInfo, Change, History, Residency, VersionDetail, VersionInfo
from service.engine.slots import Residence, State
from service.model.spec import TaskType
from service.registry.audit import Event
from service.registry.store import AdapterRecord, AdapterVersion


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
