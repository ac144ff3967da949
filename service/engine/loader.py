"""Brings adapters from the registry into slots, off the worker: disk -> host cache -> device. Knows no audio.

Slots that are full of leased or waited-for adapters make a load wait its turn; nothing else waits with it. Nothing can
end a load that hangs, as on a disk that does not answer: after `--load-timeout` it is given up, its adapter has failed,
another thread takes its place, and what it would still write is thrown away.
"""

import logging
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue

from service.engine.cores import use_cores
from service.engine.faults import Fault, fault_of
from service.engine.health import Watch
from service.engine.job import AdapterKey
from service.engine.shared import Shared
from service.engine.slots import State
from service.errors import AdapterFailed, NoFreeSlot, ServiceError
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.folding import FoldedAdapter, fold
from service.registry.store import AdapterVersion, Registry
from service.settings import Settings

_AT_ONCE = 2  # loads
_MOST_HUNG = 64  # threads that may hang; then nothing is loaded any more
_RETRY_SECONDS = 1.0  # after a failed load, requests fail at once for so long

_log = logging.getLogger(__name__)


class HostCache:
    """Adapters within a byte budget; the least recently used go first. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[AdapterKey, FoldedAdapter] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __contains__(self, key: AdapterKey) -> bool:
        return key in self._held

    def keys(self) -> list[AdapterKey]:
        """All that it holds."""
        with self._lock:
            return list(self._held)

    def get(self, key: AdapterKey) -> FoldedAdapter | None:
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key]

    def put(self, key: AdapterKey, adapter: FoldedAdapter) -> None:
        """Keeps `adapter`, unless it is there or more than all that may be kept."""
        with self._lock:
            if key in self._held or adapter.nbytes > self._max_bytes:
                return
            self._held[key] = adapter
            self._bytes += adapter.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._held.popitem(last=False)[1].nbytes

    def discard(self, key: AdapterKey) -> None:
        with self._lock:
            if key in self._held:
                self._bytes -= self._held.pop(key).nbytes


@dataclass(slots=True, eq=False)
class _Load:
    """One load under way.

    Args:
        is_writing: the bank is being written, so that the slot is of no use to others until that has ended.
        is_given_up: it took too long, and its adapter has failed.
    """

    version: AdapterVersion
    slot: int
    is_writing: bool = False
    is_given_up: bool = False


class Loader:
    """Loads adapters into slots. Methods without a leading underscore are called with the device's lock held."""

    def __init__(self, backbone: Backbone, bank: Bank, shared: Shared, settings: Settings) -> None:
        self._backbone = backbone
        self._bank = bank
        self._shared = shared
        self._slots, self._scheduler, self._telemetry = shared.slots, shared.scheduler, shared.telemetry
        self._timeout = settings.load_timeout
        self._watch = Watch(settings.load_timeout)
        self._cache = HostCache(settings.host_cache_mb * 2**20)
        self._queue: OrderedDict[AdapterKey, AdapterVersion] = OrderedDict()  # loads that wait for a slot
        self._running: dict[AdapterKey, _Load] = {}
        self._hung: dict[AdapterKey, _Load] = {}  # given up, and not back yet
        self._waiters: dict[AdapterKey, list[Future[None]]] = {}
        self._failed_at: dict[AdapterKey, float] = {}
        self._placed: SimpleQueue[_Load | None] = SimpleQueue()  # None ends a thread

    def start(self, registry: Registry) -> None:
        """Starts the threads that load from `registry`, and the one that watches them."""
        self._registry = registry
        for _ in range(_AT_ONCE):
            self._start_thread()
        self._watch.start()

    def request(self, version: AdapterVersion) -> None:
        """Sees to it that `version` becomes resident, unless it is or is on its way."""
        key = version.key
        if key not in self._queue and self._slots.state(key) in (State.REGISTERED, State.FAILED):
            self._queue[key] = version
            self.advance()

    def wait_for(self, version: AdapterVersion) -> "Future[None]":
        """A future that ends when `version` is resident, or with the error that kept it from it."""
        future: Future[None] = Future()
        if self._slots.state(version.key) is State.RESIDENT:
            future.set_result(None)
        else:
            self._waiters.setdefault(version.key, []).append(future)
            self.request(version)
        return future

    def check(self, version: AdapterVersion) -> None:
        """Raises AdapterFailed while a load of `version` hangs, or failed a moment ago. Needs no lock."""
        key = version.key
        failed_at = self._failed_at.get(key)
        if failed_at is None or self._slots.state(key) is not State.FAILED:
            return
        if key in self._hung or time.monotonic() - failed_at < _RETRY_SECONDS:
            raise self._failure(version)

    def is_known(self, version: AdapterVersion) -> bool:
        """Whether the registry has `version` still; what is deleted is forgotten right after it says no."""
        try:
            self._registry.version(version.name, version.version)
        except ServiceError:
            return False
        return True

    def is_cached(self, key: AdapterKey) -> bool:
        """Whether the weights of `key` are in host memory."""
        return key in self._cache

    def cached(self) -> list[AdapterKey]:
        """All whose weights are in host memory."""
        return self._cache.keys()

    def unload(self, version: AdapterVersion) -> None:
        """Frees the slot of `version` as soon as nothing runs on it, and lifts its pin."""
        self._slots.unload(version.key)
        self._ended()

    def forget(self, version: AdapterVersion) -> None:
        """Drops what a deleted `version` holds; requests admitted on it still finish."""
        self._cache.discard(version.key)
        self._failed_at.pop(version.key, None)
        self.unload(version)

    def advance(self) -> None:
        """Gives slots that have become free to the loads that wait for one, as far as there is hope for them."""
        while self._queue and len(self._running) < _AT_ONCE:
            key, version = next(iter(self._queue.items()))
            if key not in self._scheduler and key not in self._waiters:
                self._scheduler.wake(key)  # what it was to be loaded for has been abandoned
            elif key in self._hung or len(self._hung) >= _MOST_HUNG:
                self._settle(key, self._failure(version, "too many loads hang already"))
            elif self._slots.all_pinned:
                reason = f"all {self._slots.count} slots hold pinned adapters; unpin one"
                self._settle(key, NoFreeSlot(reason, adapter=version.name))
            elif (slot := self._slots.place(key, self._scheduler)) is not None:
                self._running[key] = load = _Load(version, slot)
                self._placed.put(load)
            else:
                break
            del self._queue[key]

    def fail_all(self, error: ServiceError) -> None:
        """Answers every queued job, and everybody who waits for a load; the loads themselves go on."""
        for key in [*self._waiters, *self._scheduler.waiting()]:
            self._settle(key, error)

    def close(self) -> None:
        """Starts no more loads; those that run are let be."""
        self._queue.clear()
        self._watch.stop()
        for _ in range(_AT_ONCE):
            self._placed.put(None)

    def _start_thread(self) -> None:
        threading.Thread(target=self._work, name="load", daemon=True).start()

    def _work(self) -> None:
        """One of the threads that load, until the loader is closed or another has taken its place."""
        use_cores(1)
        while (load := self._placed.get()) is not None:
            self._load(load)
            if load.is_given_up:
                return

    def _load(self, load: _Load) -> None:
        version, key, started = load.version, load.version.key, time.monotonic()
        error: Exception | None = None
        try:
            with self._watch.running(lambda: self._give_up(load)):
                folded = self._cache.get(key) or fold(self._registry.load(version), self._backbone)
                with self._shared.changed:
                    load.is_writing = not load.is_given_up
                if load.is_writing:
                    self._bank.write(load.slot, folded)
        except Exception as failure:
            _log.exception("adapter failed to load", extra={"adapter": version.name, "version": version.version})
            error = failure
        with self._shared.changed:
            if load.is_given_up:
                self._come_back(load)
                return
            del self._running[key]
            if error is not None:
                if fault_of(error) is Fault.DEVICE:
                    self._shared.suspect()
                self._fail(load, error.detail if isinstance(error, ServiceError) else repr(error))
                return
            self._slots.loaded(key)
            self._scheduler.wake(key)
            self._failed_at.pop(key, None)
            self._settle(key, None)
            if self.is_known(version):
                self._cache.put(key, folded)
            else:  # deleted meanwhile; those who were let in before still run
                self._slots.unload(key, self._scheduler)
            self._ended()
        self._telemetry.adapter_loads_total.inc()
        self._telemetry.adapter_load_seconds.observe(time.monotonic() - started)

    def _give_up(self, load: _Load) -> None:
        """A load takes too long: its adapter has failed, and another thread takes the place of its own."""
        key = load.version.key
        _log.error("a load hangs", extra={"adapter": load.version.name, "version": load.version.version})
        with self._shared.changed:
            load.is_given_up = True
            self._hung[key] = self._running.pop(key)
            self._telemetry.adapter_loads_hung.set(len(self._hung))
            what = "the device has not taken" if load.is_writing else "the disk has not given"
            self._fail(load, f"{what} its weights within {self._timeout:g} s", strands=load.is_writing)
            if len(self._hung) < _MOST_HUNG:
                self._start_thread()

    def _come_back(self, load: _Load) -> None:
        """The thread of a load that was given up has ended after all: its adapter can be tried again."""
        key = load.version.key
        del self._hung[key]
        self._telemetry.adapter_loads_hung.set(len(self._hung))
        self._failed_at.pop(key, None)
        if load.is_writing:
            self._slots.recover(load.slot)
        self.advance()

    def _fail(self, load: _Load, reason: str, *, strands: bool = False) -> None:
        key = load.version.key
        self._telemetry.adapter_load_failures_total.inc()
        self._slots.failed(key, reason, strands=strands)
        self._failed_at[key] = time.monotonic()
        self._settle(key, self._failure(load.version))
        self._ended()

    def _ended(self) -> None:
        self.advance()
        self._shared.changed.notify_all()

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

    def _failure(self, version: AdapterVersion, reason: str = "") -> AdapterFailed:
        """What to tell those who want `version`: why its last load failed, or else the `reason`."""
        reason = self._slots.failure(version.key) or reason
        return AdapterFailed(f"adapter {version.reference} could not be loaded: {reason}", adapter=version.reference)
