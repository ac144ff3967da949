"""The device of this process: the bank and its slots, the queue before them, the loader and the one worker."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from service.audio.features import Features
from service.engine.cost import Cost, Costs
from service.engine.device import Work
from service.engine.health import Health
from service.engine.job import FRAME_SECONDS, Job, Values, key_of
from service.engine.loader import Loader
from service.engine.runner import Runner
from service.engine.scheduler import Scheduler
from service.engine.slots import Residence, Slots, State, Tier
from service.engine.smoke import SmokeTest
from service.engine.worker import Worker
from service.errors import NotReady, ServiceError, UnknownVersion
from service.model.adapter import AdapterWeights
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.registry.manifest import Manifest
from service.registry.store import AdapterVersion, Registry
from service.settings import Settings
from service.telemetry import Telemetry

PACE_ROWS = (1, 4)  # batches that are timed at start
LAST_BATCH_SECONDS = 2.0  # for a batch that runs when the time to stop is up; nobody waits for its answers
_AT_ONE_MOMENT = 64  # adapters that are looked up while the lock is held


class LocalDevice:
    """One backbone in this process. What is here may be called from any thread."""

    def __init__(self, backbone: Backbone, settings: Settings, telemetry: Telemetry) -> None:
        self._backbone = backbone
        self._telemetry = telemetry
        row_bytes = settings.batch_mb * 2**20
        bank = Bank(backbone, settings.adapter_slots)
        batch_frames = round(settings.batch_seconds / FRAME_SECONDS)
        self._costs = Costs(backbone, row_bytes, batch_frames)
        self._runner = Runner(backbone, bank)
        self._scheduler = Scheduler(batch_frames, settings.batch_ms / 1000, row_bytes)
        self._slots = Slots(settings.adapter_slots)
        self._changed = threading.Condition()
        self._health = Health(settings.device_timeout, telemetry, self._break)
        self._smoke = SmokeTest(backbone, settings.request_timeout, self._costs, self._suspect)
        self._loader = Loader(
            backbone, bank, self._slots, self._scheduler, telemetry, self._changed, settings, self._suspect
        )
        self._worker = Worker(
            self._runner, self._scheduler, self._slots, self._loader, telemetry, self._changed, self._health
        )

    @property
    def features(self) -> Features:
        """What the backbone's front end reads of a clip."""
        return self._backbone.features

    @property
    def rate(self) -> float:
        """Window-frames that it runs a second; 0 where that is not known."""
        return self._scheduler.pace.rate

    def cost(self, window_frames: int) -> Cost:
        """What a row of so many frames costs."""
        return self._costs.of(window_frames)

    def refusal(self, window_frames: int) -> str | None:
        """Why a row of so many frames cannot run here, where it cannot."""
        return self._costs.refusal(window_frames)

    def check(self) -> None:
        """Raises NotReady, with the reason, while nothing can be run."""
        if self._health.fault or self._worker.stopping:
            raise NotReady(self._health.fault or "the service is stopping")

    def check_adapter(self, version: AdapterVersion) -> None:
        """Raises AdapterFailed while a load of `version` hangs, or failed a moment ago."""
        self._loader.check(version)

    def start(self, registry: Registry, on_dead: Callable[[NotReady], None]) -> None:
        """Warms the backbone up and begins to run what comes.

        Args:
            registry: where adapters are loaded from.
            on_dead: called, from a thread of the device's, when only another process could use it again.
        """
        self._health.on_dead = on_dead
        self._runner.warm_up()
        for rows in PACE_ROWS:
            started = time.monotonic()
            self._scheduler.pace.observe(self._runner.warm_up(rows), time.monotonic() - started)
        self._loader.start(registry)
        self._worker.start()
        self._health.start()

    def stop(self, timeout: float) -> bool:
        """Fails what is queued with NotReady, and waits so many seconds for the batch that runs.

        Returns:
            Whether the device has returned from its last batch, for which `LAST_BATCH_SECONDS` more are allowed.
        """
        with self._changed:
            self._fail_queued(NotReady("the service is stopping"))
            self._worker.stopping = True
            self._changed.notify_all()
        stopped = self._worker.join(timeout + LAST_BATCH_SECONDS)
        self._health.stop()
        self._loader.close()
        return stopped

    async def infer(self, work: Work) -> list[Values]:
        """As `Device.infer`: each part is cut into jobs that fit a batch, and its outputs are put together again."""
        jobs, ends = self._cut(work)
        with self._changed:
            self.check()
            for job in jobs:
                self._scheduler.push(job)
            for version in {part.adapter: None for part in work.parts}:
                self._loader.request(version)
            self._changed.notify_all()
        try:
            values = await asyncio.gather(*[asyncio.wrap_future(job.future) for job in jobs])
        finally:
            self._leave(jobs)
        if len(jobs) == len(work.parts):
            return values
        return [_joined(values[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

    async def load(self, adapter: AdapterVersion) -> None:
        """Makes `adapter` resident. Raises AdapterFailed, NoFreeSlot and NotReady."""
        with self._changed:
            self.check()
            future = self._loader.wait_for(adapter)
        await asyncio.wrap_future(future)

    def try_out(self, manifest: Manifest, weights: AdapterWeights) -> None:
        """As `Device.try_out`, on a bank of its own beside the traffic."""
        self._smoke(manifest, weights)

    def residences(self, adapters: Sequence[AdapterVersion]) -> list[Residence]:
        """State, tier and pin of each of `adapters`; a long list is looked up in parts, for others not to wait."""
        found: list[Residence] = []
        for at in range(0, len(adapters), _AT_ONE_MOMENT):
            with self._changed:
                found += [self._residence(version) for version in adapters[at : at + _AT_ONE_MOMENT]]
        return found

    async def unload(self, adapter: AdapterVersion) -> None:
        """Frees the slot of `adapter` as soon as nothing runs on it, and lifts its pin."""
        with self._changed:
            self._slots.unload(key_of(adapter))
            self._telemetry.adapters_resident.set(self._slots.resident)
            self._loader.advance()

    def forget(self, adapters: Sequence[AdapterVersion]) -> None:
        """Frees what deleted adapters hold; requests admitted on them still finish."""
        with self._changed:
            for version in adapters:
                self._slots.unload(key_of(version))
                self._loader.forget(version)
            self._telemetry.adapters_resident.set(self._slots.resident)
            self._loader.advance()

    async def pin(self, adapter: AdapterVersion) -> None:
        """Makes `adapter` resident and keeps it from eviction, until it is unpinned, unloaded or deleted.

        Raises:
            UnknownVersion: it has been deleted.
            AdapterFailed, NoFreeSlot, NotReady: it cannot be loaded, and is not pinned then.
        """
        key = key_of(adapter)
        with self._changed:
            self.check()
            self._check_known(adapter)
            was_pinned = self._slots.is_pinned(key)
            self._slots.pin(key)
        try:
            await self.load(adapter)
        except BaseException:
            if not was_pinned:
                await self.unpin(adapter)
            raise
        with self._changed:
            self._check_known(adapter)

    async def unpin(self, adapter: AdapterVersion) -> None:
        with self._changed:
            self._slots.unpin(key_of(adapter))
            self._loader.advance()

    def _cut(self, work: Work) -> tuple[list[Job], list[int]]:
        """The jobs of every part, none larger than a batch, and where each part's end."""
        jobs: list[Job] = []
        ends: list[int] = []
        chunks: dict[tuple[int, int], list[Values]] = {}  # of windows that parts share, shared again
        for part in work.parts:
            version, windows, cost = part.adapter, part.windows, self._costs.of(part.window_frames)
            key, shape = key_of(version), windows.shape[1:]
            rows = self._scheduler.rows_at_once(cost)
            identity = id(windows), rows
            if identity not in chunks:
                chunks[identity] = [windows[at : at + rows] for at in range(0, len(windows), rows)]
            for chunk in chunks[identity]:
                size = len(chunk)
                frames, nbytes = size * cost.frames, size * cost.nbytes
                jobs.append(Job(version, key, version.name, chunk, size, shape, frames, nbytes, work.deadline))
            ends.append(len(jobs))
        return jobs, ends

    def _leave(self, jobs: Sequence[Job]) -> None:
        """Takes what nobody waits for any more out of the queue."""
        if left := [job for job in jobs if job.future.cancel()]:
            with self._changed:
                for job in left:
                    self._scheduler.discard(job)

    def _check_known(self, version: AdapterVersion) -> None:
        """Raises UnknownVersion for one that was deleted; one that is deleted from now on is forgotten after this."""
        if not self._loader.is_known(version):
            raise UnknownVersion(f"{version.reference} has been deleted", adapter=version.reference)

    def _residence(self, version: AdapterVersion) -> Residence:
        key = key_of(version)
        state = self._slots.state(key)
        below = Tier.HOST if self._loader.is_cached(version) else Tier.DISK
        tier = Tier.DEVICE if state is State.RESIDENT else below
        return Residence(state, tier, self._slots.is_pinned(key), self._slots.failure(key))

    def _break(self, error: ServiceError) -> None:
        """Tells everybody who waits for the device that it cannot be used."""
        with self._changed:
            self._worker.fail_running(error)
            self._fail_queued(error)
            self._loader.fail_waiters(error)
            self._changed.notify_all()

    def _suspect(self) -> None:
        """Has the worker see whether the device can still be used."""
        with self._changed:
            self._worker.suspected = True
            self._changed.notify_all()

    def _fail_queued(self, error: ServiceError) -> None:
        for key in self._scheduler.waiting():
            for job in self._scheduler.remove(key):
                job.fail(error)


def _joined(values: Sequence[Values]) -> Values:
    return values[0] if len(values) == 1 else np.concatenate(values)
