"""Brings adapters from the registry into slots, off the worker: disk -> host cache -> device. Knows no audio.

Slots that are full of leased or waited-for adapters make a load wait its turn; nothing else waits with it.
"""

import logging
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from service.engine.cores import use_cores
from service.engine.job import AdapterKey, key_of
from service.engine.scheduler import Scheduler
from service.engine.slots import Slots, State
from service.errors import AdapterFailed, NoFreeSlot, ServiceError
from service.model.adapter import AdapterWeights
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.folding import fold
from service.registry.store import AdapterVersion, Registry
from service.telemetry import Telemetry

_THREADS = 2  # loads at once
_RETRY_SECONDS = 1.0  # after a failed load, requests fail at once for so long

_log = logging.getLogger(__name__)


class HostCache:
    """Weights of recently loaded adapters in host memory, within a byte budget; the oldest go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._weights: OrderedDict[AdapterKey, AdapterWeights] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: AdapterKey) -> AdapterWeights | None:
        with self._lock:
            if key in self._weights:
                self._weights.move_to_end(key)
            return self._weights.get(key)

    def __contains__(self, key: AdapterKey) -> bool:
        return key in self._weights

    def discard(self, key: AdapterKey) -> None:
        with self._lock:
            weights = self._weights.pop(key, None)
            self._bytes -= weights.nbytes if weights is not None else 0

    def put(self, key: AdapterKey, weights: AdapterWeights) -> None:
        with self._lock:
            if key in self._weights or weights.nbytes > self._max_bytes:
                return
            self._weights[key] = weights
            self._bytes += weights.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._weights.popitem(last=False)[1].nbytes


class Loader:
    """Loads adapters into slots. Methods without a leading underscore are called with `changed` held.

    Args:
        changed: the engine's lock; notified whenever an adapter became resident or a load failed.
    """

    def __init__(
        self,
        backbone: Backbone,
        bank: Bank,
        registry: Registry,
        slots: Slots,
        scheduler: Scheduler,
        telemetry: Telemetry,
        changed: threading.Condition,
        host_cache_bytes: int,
    ) -> None:
        self._backbone = backbone
        self._bank = bank
        self._registry = registry
        self._slots = slots
        self._scheduler = scheduler
        self._telemetry = telemetry
        self._changed = changed
        self._cache = HostCache(host_cache_bytes)
        self._queue: OrderedDict[AdapterKey, AdapterVersion] = OrderedDict()  # loads that wait for a slot
        self._waiters: dict[AdapterKey, list[Future[None]]] = {}
        self._failed_at: dict[AdapterKey, float] = {}
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="load", initializer=use_cores, initargs=(1,))

    def request(self, version: AdapterVersion) -> None:
        """Sees to it that `version` becomes resident, unless it is or is on its way."""
        key = key_of(version)
        if key not in self._queue and self._slots.state(key) in (State.REGISTERED, State.FAILED):
            self._queue[key] = version
            self.advance()

    def wait_for(self, version: AdapterVersion) -> "Future[None]":
        """A future that ends when `version` is resident, or with the error that kept it from it."""
        future: Future[None] = Future()
        if self._slots.state(key_of(version)) is State.RESIDENT:
            future.set_result(None)
        else:
            self._waiters.setdefault(key_of(version), []).append(future)
            self.request(version)
        return future

    def check(self, version: AdapterVersion) -> None:
        """Raises AdapterFailed while the last load of `version` failed a moment ago."""
        key = key_of(version)
        if self._slots.state(key) is State.FAILED and time.monotonic() - self._failed_at[key] < _RETRY_SECONDS:
            raise _failure(version, self._slots.failure(key) or "")

    def is_cached(self, version: AdapterVersion) -> bool:
        """Whether the weights of `version` are in host memory."""
        return key_of(version) in self._cache

    def forget(self, version: AdapterVersion) -> None:
        """Drops the weights of a deleted `version` from host memory."""
        self._cache.discard(key_of(version))

    def advance(self) -> None:
        """Gives slots that have become free to the loads that wait for one."""
        while self._queue:
            key, version = next(iter(self._queue.items()))
            wanted = key in self._scheduler or key in self._waiters
            slot = self._slots.place(key, self._scheduler) if wanted else None
            if wanted and slot is None:
                break
            del self._queue[key]
            if slot is None:
                self._scheduler.wake(key)  # what it was to be loaded for has been abandoned
            else:
                self._pool.submit(self._load, version, slot)
        if self._queue and self._slots.all_pinned:
            count = self._slots.count
            for key, version in list(self._queue.items()):
                del self._queue[key]
                self._settle(
                    key, NoFreeSlot(f"all {count} slots hold pinned adapters; unpin one", adapter=version.name)
                )

    def fail_waiters(self, error: ServiceError) -> None:
        """Answers everybody who waits for a load; the loads themselves go on."""
        for key in list(self._waiters):
            self._settle(key, error)

    def close(self, wait: bool = True) -> None:
        """Starts no more loads and waits for those that run, or lets them be. Called without `changed`."""
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _load(self, version: AdapterVersion, slot: int) -> None:
        key, started = key_of(version), time.monotonic()
        try:
            weights = self._cache.get(key) or self._registry.load(version)
            self._bank.write(slot, fold(weights, self._backbone))
            self._cache.put(key, weights)
        except Exception as error:
            reason = error.detail if isinstance(error, ServiceError) else repr(error)
            _log.exception("adapter failed to load", extra={"adapter": version.name, "version": version.version})
            self._telemetry.adapter_load_failures_total.inc()
            with self._changed:
                self._slots.failed(key, reason)
                self._failed_at[key] = time.monotonic()
                self._settle(key, _failure(version, reason))
                self._ended()
            return
        self._telemetry.adapter_loads_total.inc()
        self._telemetry.adapter_load_seconds.observe(time.monotonic() - started)
        with self._changed:
            self._slots.loaded(key)
            self._scheduler.wake(key)
            self._failed_at.pop(key, None)
            self._settle(key, None)
            self._ended()

    def _ended(self) -> None:
        self._telemetry.adapters_resident.set(self._slots.resident)
        self.advance()
        self._changed.notify_all()

    def _settle(self, key: AdapterKey, error: ServiceError | None) -> None:
        """Answers those who wait for `key`; on an error its queued jobs too."""
        for future in self._waiters.pop(key, []):
            if not future.set_running_or_notify_cancel():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
        if error is not None:
            for job in self._scheduler.remove(key):
                job.fail(error)


def _failure(version: AdapterVersion, reason: str) -> AdapterFailed:
    reference = f"{version.name}@{version.version}"
    return AdapterFailed(f"adapter {reference} could not be loaded: {reason}", adapter=reference)
