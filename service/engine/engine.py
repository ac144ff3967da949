"""The engine: admits clips, batches them over adapters, answers. Knows no HTTP and no files.

The event loop only admits and awaits; features are computed in threads, loads run in threads of their own, and one
worker owns the device.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from service.audio.features import ClipFeatures
from service.audio.waveform import Waveform
from service.engine.cores import use_cores
from service.engine.cost import Costs
from service.engine.health import Health
from service.engine.job import FRAME_SECONDS, Values, flow_of, key_of
from service.engine.loader import Loader
from service.engine.requests import Request, least_frames
from service.engine.runner import Runner
from service.engine.scheduler import Scheduler
from service.engine.slots import Residence, Slots, State, Tier
from service.engine.turns import Turns
from service.engine.worker import Worker
from service.errors import AdapterFailed, DeadlineExceeded, NotReady, UnknownVersion
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.registry.store import AdapterVersion, Registry
from service.settings import Settings
from service.telemetry import Telemetry

PACE_ROWS = (1, 4)  # batches that are timed at start
_AT_ONE_MOMENT = 64  # adapters that are looked up while the lock is held
LAST_BATCH_SECONDS = 2.0  # for a batch that runs when the time to stop is up; nobody waits for its answers


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one adapter said of one clip.

    Args:
        values: float32, probabilities `[W, C]` after activation and temperature, or raw speaker embeddings
            `[W, embedding_dim]`.
        spans: start and end of each window, seconds.
    """

    adapter: AdapterVersion
    values: Values
    spans: tuple[tuple[float, float], ...]


@dataclass(slots=True)
class Place:
    """Room in the queue that a request holds while its clips are decoded: window-frames by flow."""

    frames: Mapping[str, int] = field(default_factory=dict)


class Engine:
    """One backbone, its slots, and the queue before them."""

    def __init__(self, backbone: Backbone, registry: Registry, settings: Settings, telemetry: Telemetry) -> None:
        bank = Bank(backbone, settings.adapter_slots)
        self._front_end = backbone.features
        self._runner = Runner(backbone, bank)
        self._scheduler = Scheduler(
            _frames(settings.batch_seconds),
            _frames(settings.queue_seconds),
            settings.batch_ms / 1000,
            settings.batch_mb * 2**20,
        )
        self._costs = Costs(backbone, settings.batch_mb * 2**20)
        self._slots = Slots(settings.adapter_slots)
        self._telemetry = telemetry
        self._changed = threading.Condition()
        self._loader = Loader(
            backbone,
            bank,
            registry,
            self._slots,
            self._scheduler,
            telemetry,
            self._changed,
            settings.host_cache_mb * 2**20,
            settings.load_timeout,
            self._suspect,
        )
        # The worker alone computes on all cores; one core each is best for the many small operations beside it.
        self._features = ThreadPoolExecutor(
            settings.decode_threads, thread_name_prefix="features", initializer=use_cores, initargs=(1,)
        )
        self._turns = Turns(settings.decode_threads)
        self._health = Health(settings.device_timeout, telemetry, self._break)
        self._device = Worker(
            self._runner, self._scheduler, self._slots, self._loader, telemetry, self._changed, self._health
        )
        self._worker = threading.Thread(target=self._device.work, name="device", daemon=True)
        self._open = False

    def check_ready(self) -> None:
        """Raises NotReady, with the reason, unless requests are admitted."""
        if self._health.fault:
            raise NotReady(self._health.fault)
        if not self._open:
            raise NotReady("the engine is not running")

    def start(self, on_dead: Callable[[NotReady], None] = lambda error: None) -> None:
        """Warms the backbone up and begins to admit requests.

        Args:
            on_dead: called, from a thread of the engine's, when only another process could use the device again.
        """
        self._health.on_dead = on_dead
        self._runner.warm_up()
        for rows in PACE_ROWS:
            started = time.monotonic()
            self._scheduler.observe(self._runner.warm_up(rows), time.monotonic() - started)
        self._loader.start()
        self._worker.start()
        self._health.start()
        self._open = True

    def stop(self, timeout: float) -> bool:
        """Admits nothing more, finishes what was admitted within `timeout` seconds, fails the rest with NotReady.

        Returns:
            Whether the device has returned from its last batch, for which `LAST_BATCH_SECONDS` more are allowed.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            self._open = False
            self._changed.wait_for(lambda: not self._scheduler.admitted_frames, max(0.0, deadline - time.monotonic()))
            self._fail_queued(NotReady("the service is stopping"))
            self._device.stopping = True
            self._changed.notify_all()
        if self._worker.ident is not None:
            self._worker.join(max(0.0, deadline - time.monotonic()) + LAST_BATCH_SECONDS)
        self._health.stop()
        stopped = not self._worker.is_alive()
        self._loader.close()
        self._features.shutdown(wait=stopped, cancel_futures=True)
        return stopped

    def check(self, adapters: Sequence[AdapterVersion]) -> None:
        """Raises at once what `infer` would raise now, whatever the clip: nothing has to be read or decoded for it."""
        with self._changed:
            self.check_ready()
            self._check(adapters, least_frames(adapters, 1, self._costs))

    @contextmanager
    def place(self, adapters: Sequence[AdapterVersion], clips: int) -> Iterator[Place]:
        """Room for the shortest clips, for `infer` to make it what they need: what is decoded counts as queued.

        Raises:
            NotReady, AdapterFailed, PayloadTooLarge, Overloaded: as `infer`.
        """
        frames = least_frames(adapters, clips, self._costs)
        with self._changed:
            self.check_ready()
            self._check(adapters, frames)
            self._scheduler.admit(frames)
        place = Place(frames)
        try:
            yield place
        finally:
            self._give_back(place.frames)

    async def infer(
        self,
        clips: Sequence[Waveform],
        adapters: Sequence[AdapterVersion],
        *,
        deadline: float = math.inf,
        place: Place | None = None,
    ) -> list[list[Outputs]]:
        """Every adapter's outputs for every clip, `[clip][adapter]`; one failure fails the whole request.

        Cancelling drops what has not reached the device.

        Args:
            deadline: on the clock of `time.monotonic`.
            place: the room that the request holds so far; it is given back.

        Raises:
            NotReady: the engine is not started, or stopping, or its device hangs or fails.
            PayloadTooLarge: the request alone is more than the queue holds.
            Overloaded: the queue, or an adapter's share of it, is full.
            AdapterFailed: an adapter's weights could not be loaded.
            NoFreeSlot: an adapter would have to be loaded, and every slot is pinned.
            DeadlineExceeded: the answer was not there at the deadline.
        """
        features = [ClipFeatures(clip, self._front_end) for clip in clips]
        bounds = self._scheduler.batch_frames, self._scheduler.headroom.nbytes
        request = Request(features, adapters, deadline, *bounds, self._costs)
        self._admit(request, adapters, place or Place())
        try:
            async with self._turns.turn(flow_of(adapters[0])):
                await asyncio.get_running_loop().run_in_executor(self._features, request.cut_windows)
        except BaseException:
            self._give_back(request.frames)
            raise
        self._push(request, adapters)
        try:
            async with asyncio.timeout(None if deadline == math.inf else deadline - time.monotonic()):
                values = await asyncio.gather(*(asyncio.wrap_future(job.future) for job in request.jobs))
        except TimeoutError:
            raise DeadlineExceeded("the answer was not ready before the request's deadline; try again later") from None
        finally:
            self._leave(request)
        return [
            [Outputs(part.version, np.concatenate(values[part.jobs]), part.spans) for part in parts]
            for parts in request.parts
        ]

    def residences(self, versions: Sequence[AdapterVersion]) -> list[Residence]:
        """State, tier and pin of each of `versions`; a long list is looked up in parts, for others not to wait."""
        found: list[Residence] = []
        for at in range(0, len(versions), _AT_ONE_MOMENT):
            with self._changed:
                found += [self._residence(version) for version in versions[at : at + _AT_ONE_MOMENT]]
        return found

    def failure(self, version: AdapterVersion) -> str | None:
        """Why the last load of `version` failed, where its state is FAILED."""
        with self._changed:
            return self._slots.failure(key_of(version))

    async def load(self, version: AdapterVersion) -> None:
        """Makes `version` resident. Raises AdapterFailed, NoFreeSlot and NotReady."""
        with self._changed:
            self.check_ready()
            future = self._loader.wait_for(version)
        await asyncio.wrap_future(future)

    async def unload(self, version: AdapterVersion) -> None:
        """Frees the slot of `version` as soon as nothing runs on it, and lifts its pin."""
        with self._changed:
            self._slots.unload(key_of(version))
            self._telemetry.adapters_resident.set(self._slots.resident)
            self._loader.advance()

    def forget(self, versions: Sequence[AdapterVersion]) -> None:
        """Frees what deleted versions hold; requests admitted on them still finish."""
        with self._changed:
            for version in versions:
                self._slots.unload(key_of(version))
                self._loader.forget(version)
            self._telemetry.adapters_resident.set(self._slots.resident)
            self._loader.advance()

    async def pin(self, version: AdapterVersion) -> None:
        """Makes `version` resident and keeps it from eviction, until it is unpinned, unloaded or deleted.

        Raises:
            UnknownVersion: it has been deleted.
            AdapterFailed, NoFreeSlot, NotReady: it cannot be loaded, and is not pinned then.
        """
        key = key_of(version)
        with self._changed:
            self._check_known(version)
            was_pinned = self._slots.is_pinned(key)
            self._slots.pin(key)
        try:
            await self.load(version)
        except BaseException:
            if not was_pinned:
                await self.unpin(version)
            raise
        with self._changed:
            self._check_known(version)

    async def unpin(self, version: AdapterVersion) -> None:
        with self._changed:
            self._slots.unpin(key_of(version))
            self._loader.advance()

    def _check_known(self, version: AdapterVersion) -> None:
        """Raises UnknownVersion for one that was deleted; one that is deleted from now on is forgotten after this."""
        if not self._loader.is_known(version):
            reference = f"{version.name}@{version.version}"
            raise UnknownVersion(f"{reference} has been deleted", adapter=reference)

    def _residence(self, version: AdapterVersion) -> Residence:
        key = key_of(version)
        state = self._slots.state(key)
        below = Tier.HOST if self._loader.is_cached(version) else Tier.DISK
        tier = Tier.DEVICE if state is State.RESIDENT else below
        return Residence(state, tier, self._slots.is_pinned(key), self._slots.failure(key))

    def _check(self, adapters: Sequence[AdapterVersion], frames: Mapping[str, int]) -> None:
        for version in adapters:
            self._loader.check(version)
            if refusal := self._costs.refusal(version.manifest.window_frames):
                raise AdapterFailed(refusal, adapter=f"{version.name}@{version.version}")
        self._scheduler.check(frames)

    def _admit(self, request: Request, adapters: Sequence[AdapterVersion], place: Place) -> None:
        with self._changed:
            if self._health.fault or not place.frames:  # who has a place was let in before
                self.check_ready()
            self._scheduler.withdraw(place.frames)
            place.frames = {}
            self._check(adapters, request.frames)
            self._scheduler.admit(request.frames)

    def _give_back(self, frames: Mapping[str, int]) -> None:
        with self._changed:
            self._scheduler.withdraw(frames)
            if not self._open:
                self._changed.notify_all()  # `stop` may be waiting for an empty queue

    def _leave(self, request: Request) -> None:
        """Takes what nobody waits for any more out of the queue."""
        left = [job for job in request.jobs if job.future.cancel()]
        if left:
            with self._changed:
                for job in left:
                    self._scheduler.discard(job)
                if not self._open:
                    self._changed.notify_all()

    def _push(self, request: Request, adapters: Sequence[AdapterVersion]) -> None:
        with self._changed:
            if self._health.fault or self._device.stopping:
                self._scheduler.withdraw(request.frames)
                raise NotReady(self._health.fault or "the service is stopping")
            for job in request.jobs:
                self._scheduler.push(job)
            for version in adapters:
                self._loader.request(version)
            self._changed.notify_all()
        for version in adapters:
            self._telemetry.count_adapter(version.name, len(request.parts))

    def _break(self, error: NotReady) -> None:
        """Tells everybody who waits for the device that it cannot be used."""
        with self._changed:
            self._device.fail_running(error)
            self._fail_queued(error)
            self._loader.fail_waiters(error)
            self._changed.notify_all()

    def _suspect(self) -> None:
        """Has the worker see whether the device can still be used. Called with the lock held, and notified after."""
        self._device.suspected = True

    def _fail_queued(self, error: NotReady) -> None:
        for key in self._scheduler.waiting():
            for job in self._scheduler.remove(key):
                job.fail(error)


def _frames(seconds: float) -> int:
    return round(seconds / FRAME_SECONDS)
