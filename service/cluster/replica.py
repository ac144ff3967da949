"""One device in a process of its own, as those ask it who are elsewhere: `LocalDevice` with a registry behind it."""

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from service.api.opening import open_backbone, open_registry
from service.cluster.remote import Asked, Reply, Route, Status
from service.database import database_of
from service.engine.device import Part, Work
from service.engine.job import AdapterKey, Values
from service.engine.local import LocalDevice
from service.errors import NotReady, ServiceError, UnknownAdapter, UnknownVersion
from service.model.adapter import AdapterWeights
from service.notices import Notices
from service.registry.manifest import Manifest
from service.registry.store import AdapterVersion
from service.settings import Settings
from service.telemetry import Telemetry

_TOLD: Final = 4096  # versions that fronts told of are kept
_DEAD: Final = 70  # status of a process whose device only another could use


class Replica:
    """What fronts may ask, each with the route that it came by; an error is what they are answered.

    Args:
        name: what it is called among others.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        backbone = open_backbone(settings)
        self._name = name
        self._shell = backbone.shell()
        self._device = LocalDevice(backbone, settings, Telemetry())
        self._registry = open_registry(settings, backbone.spec)
        self._registry.on_gone(self._device.forget)
        self._device.start(self._registry, lambda error: os._exit(_DEAD))
        self._notices = Notices(database_of(settings.data_dir, settings.database_url))
        self._registry.follow(notices=self._notices)
        self._notices.start()
        self._told: OrderedDict[AdapterKey, AdapterVersion] = OrderedDict()
        self._queued_seconds = 0.0

    def check_health(self) -> None:
        """Raises NotReady while the device cannot be used: after some of that the process is replaced."""
        self._device.check()

    def record_routing_stats(self) -> dict[str, Any]:
        """What fronts know of this device without asking."""
        return self._status().plain()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the number of devices goes by."""
        return {"queued_seconds": self._queued_seconds}

    def close(self) -> None:
        """Stop the device, and give back what is held."""
        self._notices.close()
        self._device.stop(0.0)
        self._registry.close()

    async def shell(self, route: Route) -> Reply:
        """What a front has to know of the backbone."""
        return Reply(self._name, self._shell)

    async def infer(self, route: Route, asked: Asked, told: Sequence[AdapterVersion]) -> Reply:
        """As `Device.infer`; None where a version is unknown here and is to be `told`."""
        for version in told:
            self._told[version.key] = version
            if len(self._told) > _TOLD:
                self._told.popitem(last=False)
        seconds = asked.audio_seconds
        self._queued_seconds += seconds
        try:
            return await self._reply(self._infer(asked))
        finally:
            self._queued_seconds -= seconds

    async def reside(self, route: Route, how: str, adapter: AdapterVersion) -> Reply:
        """Load, unload, pin or unpin; the status after it."""

        async def change() -> Status:
            await asyncio.to_thread(self._registry.catch_up)  # what is pinned has to be known
            await getattr(self._device, how)(adapter)
            return self._status()

        return await self._reply(change())

    async def try_out(self, route: Route, manifest: Manifest, weights: AdapterWeights) -> Reply:
        return await self._reply(self._device.try_out(manifest, weights))

    async def _infer(self, asked: Asked) -> list[Values] | None:
        keys = {key for key, _, _ in asked.parts}
        known = {key: version for key in keys if (version := self._version(key)) is not None}
        if len(known) < len(keys):
            return None
        self._device.check(list(known.values()))
        parts = [Part(known[key], asked.windows[index], frames) for key, index, frames in asked.parts]
        return await self._device.infer(Work(parts, time.monotonic() + asked.seconds, asked.patient))

    def _version(self, key: AdapterKey) -> AdapterVersion | None:
        """A version by the catalogue as it is known here, or as a front told of it."""
        try:
            return self._registry.version(*key)
        except (UnknownAdapter, UnknownVersion):
            return self._told.get(key)

    async def _reply(self, answer: Awaitable[Any]) -> Reply:
        try:
            return Reply(self._name, await answer)
        except ServiceError as error:
            return Reply(self._name, error)

    def _status(self) -> Status:
        fault, occupancy, held = None, self._device.occupancy(), self._device.held()
        try:
            self._device.check()
        except NotReady as error:
            fault = error.detail
        places = [(*key, one.state.value, one.tier.value, one.is_pinned, one.failure) for key, one in held]
        return Status(
            *(time.monotonic(), os.getpid(), fault, self._device.rate),
            *(occupancy.slots, occupancy.used, occupancy.evictions, places),
        )
