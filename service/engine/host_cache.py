"""Recently loaded adapters in host memory, folded, so that one that was evicted comes back without the disk."""

import threading
from collections import OrderedDict

from service.engine.job import AdapterKey
from service.model.folding import FoldedAdapter


class HostCache:
    """Adapters within a byte budget; the least recently used go first. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[AdapterKey, FoldedAdapter] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __contains__(self, key: AdapterKey) -> bool:
        return key in self._held

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
