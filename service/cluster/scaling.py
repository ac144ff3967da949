"""How many devices there should be: as many as keep the window-seconds that wait for each below a bound. Pure."""

import math
from typing import Any


class ByQueuedSeconds:
    """A policy of Ray Serve's autoscaler, which applies its delays and bounds to what it answers.

    Args:
        target: window-seconds, windows x adapters, asked of one device and not answered yet.
    """

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number wanted, by `queued_seconds` of every device as Ray has averaged it; nothing is remembered."""
        queued = sum((context.aggregated_metrics or {}).get("queued_seconds", {}).values())
        wanted = math.ceil(queued / self._target)
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return min(most, max(least, wanted)), {}
