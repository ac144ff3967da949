"""The device of this process: the bank and its slots, the queue before them, the loader and the one worker."""

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np

from service.engine.cost import Costs
from service.engine.device import Work
from service.engine.health import Health
from service.engine.job import FRAME_SECONDS, AdapterKey, Job, Values, flow_of
from service.engine.loader import Loader
from service.engine.precedence import Precedence
from service.engine.runner import Runner
from service.engine.shared import Shared
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
from service.telemetry import Occupancy, Telemetry

PACE_ROWS = (1, 4)  # batches that are timed at start
LAST_BATCH_SECONDS = 2.0  # for a batch that runs when the time to stop is up; nobody waits for its answers
_AT_ONE_MOMENT = 64  # adapters that are looked up while the lock is held


class LocalDevice:
    """As `Device`, of one backbone in this process.

    Attributes:
        pace: how fast it is at the moment.
    """

    def __init__(self, backbone: Backbone, settings: Settings, telemetry: Telemetry) -> None:
        batch_frames, row_bytes = round(settings.batch_seconds / FRAME_SECONDS), settings.batch_mb * 2**20
        scheduler = Precedence(batch_frames, settings.batch_ms / 1000, row_bytes)
        bank = Bank(backbone, settings.adapter_slots)
        self.features = backbone.features
        self.costs = Costs(backbone, row_bytes, batch_frames)
        self.pace = scheduler.pace
        self._shared = shared = Shared(scheduler, Slots(settings.adapter_slots), telemetry)
        self._health = Health(settings.device_timeout, telemetry, self._break)
        self._runner = Runner(backbone, bank)
        self._loader = Loader(backbone, bank, shared, settings)
        self._worker = Worker(self._runner, shared, self._loader, self._health)
        self._smoke = SmokeTest(backbone, settings.request_timeout, self.costs, shared.suspect)

    @property
    def rate(self) -> float:
        return self.pace.rate

    def check(self, adapters: Sequence[AdapterVersion] = ()) -> None:
        if self._health.fault or self._shared.stopping:
            raise NotReady(self._health.fault or "the service is stopping")
        for version in adapters:
            self._loader.check(version)

    def start(self, registry: Registry, on_dead: Callable[[NotReady], None]) -> None:
        """As `Device.start`: warms the backbone up."""
        self._health.on_dead = on_dead
        self._runner.warm_up()
        for rows in PACE_ROWS:
            started = time.monotonic()
            self.pace.observe(self._runner.warm_up(rows), time.monotonic() - started)
        self._loader.start(registry)
        self._worker.start()
        self._health.start()

    def stop(self, timeout: float) -> bool:
        """Fails what is queued with NotReady, and waits so many seconds for the batch that runs.

        Returns:
            Whether the device has returned from its last batch, for which `LAST_BATCH_SECONDS` more are allowed.
        """
        with self._shared.changed:
            self._loader.fail_all(NotReady("the service is stopping"))
            self._shared.stopping = True
            self._shared.changed.notify_all()
        stopped = self._worker.join(timeout + LAST_BATCH_SECONDS)
        self._health.stop()
        with self._shared.changed:
            self._loader.close()
        return stopped

    async def infer(self, work: Work) -> list[Values]:
        """As `Device.infer`: each part is cut into jobs that fit a batch, and its outputs are put together again."""
        jobs, ends = self._cut(work)
        with self._shared.changed:
            self.check()
            for job in jobs:
                self._shared.scheduler.push(job)
            for version in {job.key: job.version for job in jobs}.values():
                self._loader.request(version)
            self._shared.changed.notify_all()
        try:
            waiting = [asyncio.wrap_future(job.future) for job in jobs]
            values = [await waiting[0]] if len(jobs) == 1 else await asyncio.gather(*waiting)
        finally:
            if left := [job for job in jobs if job.future.cancel()]:
                self._leave(left)
        if len(jobs) == len(work.parts):
            return values
        return [_joined(values[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

    async def load(self, adapter: AdapterVersion) -> None:
        with self._shared.changed:
            self.check()
            future = self._loader.wait_for(adapter)
        await asyncio.wrap_future(future)

    async def try_out(self, manifest: Manifest, weights: AdapterWeights) -> None:
        """As `Device.try_out`, on a bank of its own beside the traffic."""
        await self._smoke(manifest, weights)

    def residences(self, adapters: Sequence[AdapterVersion]) -> list[Residence]:
        """State, tier and pin of each of `adapters`; a long list is looked up in parts, for others not to wait."""
        found: list[Residence] = []
        for at in range(0, len(adapters), _AT_ONE_MOMENT):
            with self._shared.changed:
                found += [self._residence(version.key) for version in adapters[at : at + _AT_ONE_MOMENT]]
        return found

    def held(self) -> list[tuple[AdapterKey, Residence]]:
        """Where every adapter is that is anywhere but on disk, or whose last load failed."""
        with self._shared.changed:
            keys = self._shared.slots.known().union(self._loader.cached())
            return [(key, self._residence(key)) for key in keys]

    def occupancy(self) -> Occupancy:
        slots = self._shared.slots
        with self._shared.changed:
            occupants = slots.occupants()
            resident = [(*key, slots.is_pinned(key)) for key, state in occupants if state is State.RESIDENT]
            return Occupancy(slots.count, len(occupants), slots.evictions, resident)

    async def unload(self, adapter: AdapterVersion) -> None:
        with self._shared.changed:
            self._loader.unload(adapter)

    def forget(self, adapters: Sequence[AdapterVersion]) -> None:
        """Frees what deleted adapters hold; requests admitted on them still finish."""
        with self._shared.changed:
            for version in adapters:
                self._loader.forget(version)

    async def pin(self, adapter: AdapterVersion) -> None:
        key = adapter.key
        with self._shared.changed:
            self.check()
            self._check_known(adapter)
            was_pinned = self._shared.slots.is_pinned(key)
            self._shared.slots.pin(key)
        try:
            await self.load(adapter)
        except BaseException:
            if not was_pinned:
                await self.unpin(adapter)
            raise
        with self._shared.changed:
            self._check_known(adapter)

    async def unpin(self, adapter: AdapterVersion) -> None:
        with self._shared.changed:
            self._shared.slots.unpin(adapter.key)
            self._loader.advance()

    def _cut(self, work: Work) -> tuple[list[Job], list[int]]:
        """The jobs of every part, none larger than a batch, and where each part's end."""
        jobs: list[Job] = []
        ends: list[int] = []
        chunks: dict[tuple[int, int], list[Values]] = {}  # of windows that parts share, shared again
        for part in work.parts:
            version, windows, cost = part.adapter, part.windows, self.costs.of(part.window_frames)
            key, shape = version.key, windows.shape[1:]
            rows = 1 if len(windows) == 1 else self._shared.scheduler.rows_at_once(cost, work.patient)
            flow = flow_of(version.name, work.patient)
            identity = id(windows), rows
            if identity not in chunks:
                chunks[identity] = [windows[at : at + rows] for at in range(0, len(windows), rows)]
            for chunk in chunks[identity]:
                size = len(chunk)
                frames, nbytes = size * cost.frames, size * cost.nbytes
                jobs.append(Job(version, key, flow, chunk, size, shape, frames, nbytes, work.deadline, work.patient))
            ends.append(len(jobs))
        return jobs, ends

    def _leave(self, jobs: Sequence[Job]) -> None:
        """Takes what nobody waits for any more out of the queue."""
        with self._shared.changed:
            for job in jobs:
                self._shared.scheduler.discard(job)

    def _check_known(self, version: AdapterVersion) -> None:
        """Raises UnknownVersion for one that was deleted; one that is deleted from now on is forgotten after this."""
        if not self._loader.is_known(version):
            raise UnknownVersion(f"{version.reference} has been deleted", adapter=version.reference)

    def _residence(self, key: AdapterKey) -> Residence:
        state = self._shared.slots.state(key)
        below = Tier.HOST if self._loader.is_cached(key) else Tier.DISK
        tier = Tier.DEVICE if state is State.RESIDENT else below
        return Residence(state, tier, self._shared.slots.is_pinned(key), self._shared.slots.failure(key))

    def _break(self, error: ServiceError) -> None:
        """Tells everybody who waits for the device that it cannot be used."""
        with self._shared.changed:
            self._worker.fail_running(error)
            self._loader.fail_all(error)
            self._shared.changed.notify_all()


def _joined(values: Sequence[Values]) -> Values:
    return values[0] if len(values) == 1 else np.concatenate(values)
