"""Brings adapters from the registry into slots, off the worker: disk -> host cache -> device. Knows no audio.

Slots that are full of leased or waited-for adapters make a load wait its turn; nothing else waits with it. Nothing can
end a load that hangs, as on a disk that does not answer: after `--load-timeout` it is given up, its adapter has failed,
another thread takes its place, and what it would still write is thrown away.
"""

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

from service.engine.cores import use_cores
from service.engine.faults import Fault, fault_of
from service.engine.host_cache import HostCache
from service.engine.job import AdapterKey, key_of
from service.engine.scheduler import Scheduler
from service.engine.slots import Slots, State
from service.errors import AdapterFailed, NoFreeSlot, ServiceError
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.folding import fold
from service.registry.store import AdapterVersion, Registry
from service.settings import Settings
from service.telemetry import Telemetry

_AT_ONCE = 2  # loads
_MOST_HUNG = 64  # threads that may hang; then nothing is loaded any more
_RETRY_SECONDS = 1.0  # after a failed load, requests fail at once for so long
_LOOK_SECONDS = 1.0  # at most, between looks for loads that take too long

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Load:
    """One load under way.

    Args:
        is_writing: the bank is being written, so that the slot is of no use to others until that has ended.
        is_given_up: it took too long, and its adapter has failed.
    """

    version: AdapterVersion
    slot: int
    started: float = field(default_factory=time.monotonic)
    is_writing: bool = False
    is_given_up: bool = False


class Loader:
    """Loads adapters into slots. Methods without a leading underscore are called with `changed` held.

    Args:
        changed: the engine's lock; notified whenever an adapter became resident or a load failed.
        suspect: called when a load met an error of the device's own.
    """

    def __init__(
        self,
        backbone: Backbone,
        bank: Bank,
        slots: Slots,
        scheduler: Scheduler,
        telemetry: Telemetry,
        changed: threading.Condition,
        settings: Settings,
        suspect: Callable[[], None],
    ) -> None:
        self._backbone = backbone
        self._bank = bank
        self._slots = slots
        self._scheduler = scheduler
        self._telemetry = telemetry
        self._changed = changed
        self._timeout = settings.load_timeout
        self._suspect = suspect
        self._cache = HostCache(settings.host_cache_mb * 2**20)
        self._queue: OrderedDict[AdapterKey, AdapterVersion] = OrderedDict()  # loads that wait for a slot
        self._running: dict[AdapterKey, _Load] = {}
        self._hung: dict[AdapterKey, _Load] = {}  # given up, and not back yet
        self._waiters: dict[AdapterKey, list[Future[None]]] = {}
        self._failed_at: dict[AdapterKey, float] = {}
        self._placed: SimpleQueue[_Load | None] = SimpleQueue()  # None ends a thread
        self._closed = threading.Event()

    def start(self, registry: Registry) -> None:
        """Starts the threads that load from `registry`, and the one that watches them."""
        self._registry = registry
        for _ in range(_AT_ONCE):
            self._start_thread()
        threading.Thread(target=self._watch, name="loads", daemon=True).start()

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
        """Raises AdapterFailed while a load of `version` hangs, or failed a moment ago. Needs no lock."""
        key = key_of(version)
        if self._slots.state(key) is State.FAILED and (
            key in self._hung or time.monotonic() - self._failed_at.get(key, -math.inf) < _RETRY_SECONDS
        ):
            raise _failure(version, self._slots.failure(key) or "")

    def is_known(self, version: AdapterVersion) -> bool:
        """Whether the registry has `version` still; what is deleted is forgotten right after it says no."""
        try:
            self._registry.version(version.name, version.version)
        except ServiceError:
            return False
        return True

    def is_cached(self, version: AdapterVersion) -> bool:
        """Whether the weights of `version` are in host memory."""
        return key_of(version) in self._cache

    def forget(self, version: AdapterVersion) -> None:
        """Drops the weights of a deleted `version` from host memory."""
        self._cache.discard(key_of(version))
        self._failed_at.pop(key_of(version), None)

    def advance(self) -> None:
        """Gives slots that have become free to the loads that wait for one."""
        while self._queue and len(self._running) < _AT_ONCE:
            key, version = next(iter(self._queue.items()))
            if key not in self._scheduler and key not in self._waiters:
                del self._queue[key]
                self._scheduler.wake(key)  # what it was to be loaded for has been abandoned
            elif key in self._hung or len(self._hung) >= _MOST_HUNG:
                del self._queue[key]
                self._settle(key, _failure(version, self._slots.failure(key) or "too many loads hang already"))
            elif (slot := self._slots.place(key, self._scheduler)) is not None:
                del self._queue[key]
                self._running[key] = _Load(version, slot)
                self._placed.put(self._running[key])
            else:
                break
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

    def close(self) -> None:
        """Starts no more loads; those that run are let be. Called without `changed`."""
        with self._changed:
            self._queue.clear()
        self._closed.set()
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
        version, key = load.version, key_of(load.version)
        error: Exception | None = None
        try:
            folded = self._cache.get(key) or fold(self._registry.load(version), self._backbone)
            with self._changed:
                load.is_writing = not load.is_given_up
            if load.is_writing:
                self._bank.write(load.slot, folded)
        except Exception as failure:
            _log.exception("adapter failed to load", extra={"adapter": version.name, "version": version.version})
            error = failure
        with self._changed:
            if load.is_given_up:
                self._come_back(load)
                return
            del self._running[key]
            if error is not None:
                if fault_of(error) is Fault.DEVICE:
                    self._suspect()
                self._fail(load, error.detail if isinstance(error, ServiceError) else repr(error))
                return
            self._slots.loaded(key)
            self._scheduler.wake(key)
            self._failed_at.pop(key, None)
            self._settle(key, None)
            if self.is_known(version):
                self._cache.put(key, folded)
            elif key in self._scheduler:
                self._slots.doom(key)  # deleted meanwhile; those who were let in before still run
            else:
                self._slots.unload(key)
            self._ended()
        self._telemetry.adapter_loads_total.inc()
        self._telemetry.adapter_load_seconds.observe(time.monotonic() - load.started)

    def _watch(self) -> None:
        """Gives up the loads that take too long."""
        while not self._closed.wait(min(_LOOK_SECONDS, self._timeout / 4)):
            with self._changed:
                late = time.monotonic() - self._timeout
                for key, load in list(self._running.items()):
                    if load.started <= late:
                        self._give_up(key, load)

    def _give_up(self, key: AdapterKey, load: _Load) -> None:
        load.is_given_up = True
        self._hung[key] = self._running.pop(key)
        self._telemetry.adapter_loads_hung.set(len(self._hung))
        _log.error("a load hangs", extra={"adapter": load.version.name, "version": load.version.version})
        what = "the device has not taken" if load.is_writing else "the disk has not given"
        self._fail(load, f"{what} its weights within {self._timeout:g} s", strands=load.is_writing)
        if len(self._hung) < _MOST_HUNG:
            self._start_thread()

    def _come_back(self, load: _Load) -> None:
        """The thread of a load that was given up has ended after all: its adapter can be tried again."""
        key = key_of(load.version)
        del self._hung[key]
        self._telemetry.adapter_loads_hung.set(len(self._hung))
        self._failed_at.pop(key, None)
        if load.is_writing:
            self._slots.recover(load.slot)
        self.advance()

    def _fail(self, load: _Load, reason: str, *, strands: bool = False) -> None:
        key = key_of(load.version)
        self._telemetry.adapter_load_failures_total.inc()
        self._slots.failed(key, reason, strands=strands)
        self._failed_at[key] = time.monotonic()
        self._settle(key, _failure(load.version, reason))
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
