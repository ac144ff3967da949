"""Weights of recently loaded adapters in host memory, so that one that was evicted comes back without the disk."""

import threading
from collections import OrderedDict

from service.engine.job import AdapterKey
from service.model.adapter import AdapterWeights


class HostCache:
    """Weights within a byte budget; the least recently used go first. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[AdapterKey, tuple[AdapterWeights, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __contains__(self, key: AdapterKey) -> bool:
        return key in self._held

    def get(self, key: AdapterKey) -> AdapterWeights | None:
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def put(self, key: AdapterKey, weights: AdapterWeights, size: int) -> None:
        """Keeps `weights` of so many bytes, unless they are there or more than all that may be kept."""
        with self._lock:
            if key in self._held or size > self._max_bytes:
                return
            self._held[key] = weights, size
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._bytes -= self._held.popitem(last=False)[1][1]

    def discard(self, key: AdapterKey) -> None:
        with self._lock:
            if key in self._held:
                self._bytes -= self._held.pop(key)[1]
