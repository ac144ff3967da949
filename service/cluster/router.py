"""Ray Serve's choice of a process for each call: by the adapter's name, with bounded load.

Ray copies this module by value into the processes that ask: what has to be theirs is reached through its own module.
"""

from typing import Any

from ray.serve.request_router import RequestRouter

from service.cluster import remote
from service.cluster.placement import Ring


class Placed(RequestRouter):  # type: ignore[misc]
    """Also tells this process's fleet who runs, and what they told of themselves."""

    _ring: Any = None
    _names: frozenset[str] = frozenset()

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """All of them, one by one: the adapter's own first, those without room, at fault or to be avoided last."""
        by_name = {one.replica_id.unique_id: one for one in candidate_replicas}
        if self._names != by_name.keys():
            self._ring, self._names = Ring({name: name for name in by_name}), frozenset(by_name)
        route = pending_request.args[0] if pending_request is not None and pending_request.args else remote.Route()

        def in_flight(name: str) -> int:
            return self.replica_queue_len_cache.get(by_name[name].replica_id) or 0

        def hope(name: str) -> tuple[bool, bool]:
            return name == route.avoid, bool((by_name[name].routing_stats or {}).get("fault"))

        return [[by_name[name]] for name in sorted(self._ring.ranked(route.name, in_flight), key=hope)]

    def update_replicas(self, replicas: list[Any]) -> None:
        super().update_replicas(replicas)
        remote.FLEET.take({one.replica_id.unique_id: one.routing_stats or {} for one in replicas})

    def on_replica_actor_died(self, replica_id: Any) -> None:
        super().on_replica_actor_died(replica_id)
        remote.FLEET.lose(replica_id.unique_id)
