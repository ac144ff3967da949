"""Devices of this process that are asked as those of others are: all that crosses is pickled, and any may die."""

import asyncio
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from service.cluster.placement import Ring
from service.cluster.remote import Fleet, Lost, RemoteDevice, Reply, Route
from service.cluster.replica import Replica
from service.settings import Settings

Before = Callable[[str, str], None]


class FakeChannel:
    """As `RayChannel`.

    Attributes:
        before: called with replica and method before each call; what it raises is what becomes of it.
        asked: replica and method of every call so far.
    """

    def __init__(self, replicas: dict[str, Any], fleet: Fleet) -> None:
        self.replicas = replicas
        self.fleet = fleet
        self.before: Before = lambda replica, method: None
        self.asked: list[tuple[str, str]] = []
        self.tell()

    def tell(self) -> None:
        """Every device tells of itself, as it does each second."""
        self.fleet.take({name: one.record_routing_stats() for name, one in self.replicas.items()})

    def kill(self, name: str) -> None:
        """One is gone, and it is known."""
        del self.replicas[name]
        self.fleet.lose(name)

    def order(self, route: Route) -> list[str]:
        ranked = Ring({name: name for name in self.replicas}).ranked(route.name, lambda name: 0)
        return sorted(ranked, key=lambda name: name == route.avoid)

    async def ask(self, method: str, route: Route, *args: Any) -> Reply:
        if not self.replicas:
            raise Lost("there is none")
        return await self._call(self.order(route)[0], method, route, *args)

    async def ask_all(self, method: str, *args: Any) -> list[Reply]:
        return [await self._call(name, method, Route(), *args) for name in list(self.replicas)]

    async def _call(self, name: str, method: str, *args: Any) -> Reply:
        self.asked.append((name, method))
        self.before(name, method)
        reply: Reply = _crossed(await getattr(self.replicas[name], method)(*_crossed(args)))
        return reply


def _crossed(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301


@contextmanager
def devices(settings: Settings, *names: str) -> Iterator[tuple[RemoteDevice, FakeChannel]]:
    """Real devices of these names, and what asks them."""
    replicas = {name: Replica(settings, name) for name in names}
    fleet = Fleet()
    channel = FakeChannel(replicas, fleet)
    try:
        shell = asyncio.run(channel.ask("shell", Route())).value
        channel.asked.clear()
        yield RemoteDevice(shell, channel, fleet, settings), channel
    finally:
        for one in replicas.values():
            one.close()
