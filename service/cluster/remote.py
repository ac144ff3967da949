"""The device of a front: asks one of several processes that each have one. Knows nothing of what carries its calls."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple, Protocol

from service.engine.cost import Costs
from service.engine.device import Work
from service.engine.job import FRAME_SECONDS, AdapterKey, Values
from service.engine.slots import Residence, State, Tier
from service.errors import NotReady, ServiceError
from service.model.adapter import AdapterWeights
from service.model.backbone import Backbone
from service.registry.manifest import Manifest
from service.registry.store import AdapterVersion, Registry
from service.settings import Settings
from service.telemetry import Occupancy

RETRY_SECONDS: Final = 1.0  # what is told to who found no device; another has taken its place some seconds later
_NEAREST: Final = (State.RESIDENT, State.LOADING, State.FAILED, State.REGISTERED)
_NOWHERE: Final = Residence(State.REGISTERED, Tier.DISK, False, None)


class Lost(Exception):
    """The process that was asked is gone, and nobody knows how far it came."""


class Route(NamedTuple):
    """Whom a call is for.

    Args:
        name: of the adapter that it is about; any process will do without one.
        avoid: the process that has just failed at it, to be asked last.
    """

    name: str = ""
    avoid: str = ""


class Reply(NamedTuple):
    """What a process answers: errors are values, so that they arrive with their type and nothing else.

    Args:
        replica: who it is.
        value: the answer, or the ServiceError in its place; None where it does not know a version and is to be told.
    """

    replica: str
    value: Any


@dataclass(frozen=True, slots=True)
class Asked:
    """`Work` as it crosses: an adapter by its key, and windows that parts share once.

    Args:
        parts: adapter, index into `windows` and window-frames of each.
        seconds: until its deadline: clocks differ between machines.
    """

    windows: Sequence[Values]
    parts: Sequence[tuple[AdapterKey, int, int]]
    seconds: float
    patient: bool

    @classmethod
    def of(cls, work: Work) -> "Asked":
        indices: dict[int, int] = {}
        windows: list[Values] = []
        parts = []
        for part in work.parts:
            index = indices.setdefault(id(part.windows), len(windows))
            if index == len(windows):
                windows.append(part.windows)
            parts.append((part.adapter.key, index, part.window_frames))
        return cls(windows, parts, work.deadline - time.monotonic(), work.patient)

    @property
    def audio_seconds(self) -> float:
        """Windows x adapters."""
        return FRAME_SECONDS * sum(len(self.windows[index]) * frames for _, index, frames in self.parts)


@dataclass(frozen=True, slots=True)
class Status:
    """What a process tells of its device.

    Args:
        at: when, on its own clock: the latest holds.
        fault: why its device cannot be used, while it cannot.
        rate: as `Device.rate`.
        held: name, version, state, tier, pin and failure of each adapter that is anywhere but on disk.
    """

    at: float
    pid: int
    fault: str | None
    rate: float
    slots: int
    used: int
    evictions: int
    held: Sequence[tuple[str, int, str, str, bool, str | None]]

    def plain(self) -> dict[str, Any]:
        """As those can carry it who know nothing of the service."""
        return asdict(self)

    def residences(self) -> dict[AdapterKey, Residence]:
        return {
            (name, version): Residence(State(state), Tier(tier), is_pinned, failure)
            for name, version, state, tier, is_pinned, failure in self.held
        }


class Fleet:
    """The processes that run, as far as this one knows; replaced whole, so that readers take no lock."""

    def __init__(self) -> None:
        self.statuses: Mapping[str, Status | None] = {}  # None of one that has not told anything yet
        self.residences: Mapping[AdapterKey, Residence] = {}

    def take(self, told: Mapping[str, Mapping[str, Any]]) -> None:
        """These are all there are, and this is what they told last."""
        found: dict[str, Status | None] = {}
        for replica, plain in told.items():
            status = Status(**plain) if plain else None
            known = self.statuses.get(replica)
            found[replica] = known if known and (status is None or known.at > status.at) else status
        self._show(found)

    def hear(self, replica: str, status: Status) -> None:
        """One of them has told this just now."""
        if replica in self.statuses:
            self._show({**self.statuses, replica: status})

    def lose(self, replica: str) -> None:
        """One of them is gone."""
        self._show({name: status for name, status in self.statuses.items() if name != replica})

    @property
    def known(self) -> list[Status]:
        return [status for status in self.statuses.values() if status is not None]

    def _show(self, statuses: Mapping[str, Status | None]) -> None:
        nearest: dict[AdapterKey, Residence] = {}
        for status in statuses.values():
            for key, place in status.residences().items() if status else ():
                nearest[key] = _nearer(nearest.get(key, _NOWHERE), place)
        self.statuses, self.residences = dict(statuses), nearest


FLEET: Final = Fleet()  # of this process


def _nearer(one: Residence, other: Residence) -> Residence:
    first, second = sorted((one, other), key=lambda place: _NEAREST.index(place.state))
    tier = min(one.tier, other.tier, key=list(Tier).index)
    return Residence(first.state, tier, first.is_pinned or second.is_pinned, first.failure)


class Channel(Protocol):
    """What carries calls to the processes."""

    async def ask(self, method: str, route: Route, *args: Any) -> Reply:
        """One of them does it. Cancelling it does so there. Raises Lost, at once where there are none."""

    async def ask_all(self, method: str, *args: Any) -> list[Reply]:
        """All that run do it; what one of them fails at for good is left out."""


class RemoteDevice:
    """As `Device`, in other processes: which of them runs an adapter is the channel's choice.

    Args:
        shell: of the backbone that all of them run.
    """

    def __init__(self, shell: Backbone, channel: Channel, fleet: Fleet, settings: Settings) -> None:
        batch_frames, row_bytes = round(settings.batch_seconds / FRAME_SECONDS), settings.batch_mb * 2**20
        self.features = shell.features
        self.costs = Costs(shell, row_bytes, batch_frames)
        self._channel = channel
        self._fleet = fleet
        self._is_stopping = False

    @property
    def rate(self) -> float:
        return sum(status.rate for status in self._fleet.known)

    def check(self, adapters: Sequence[AdapterVersion] = ()) -> None:
        """As `Device.check`; an adapter that fails is told by the process that runs it."""
        if self._is_stopping:
            raise NotReady("the service is stopping")
        statuses = self._fleet.statuses.values()
        faults = [status.fault for status in statuses if status and status.fault]
        if len(faults) == len(statuses):
            raise NotReady(faults[0] if faults else "no device is running at the moment", retry_after=RETRY_SECONDS)

    def start(self, registry: Registry, on_dead: Callable[[NotReady], None]) -> None:
        """Nothing: the processes have a registry of their own, and are started anew by others."""

    def stop(self, timeout: float) -> bool:
        self._is_stopping = True
        return True

    async def infer(self, work: Work) -> list[Values]:
        """As `Device.infer`: all parts go to the process of the first one's adapter."""
        if math.isfinite(work.deadline) and work.deadline <= time.monotonic():
            raise NotReady("nobody waits for it any more")
        name = work.parts[0].adapter.name
        values: list[Values] | None = await self._ask("infer", name, Asked.of(work), ())
        if values is None:
            versions = list({part.adapter.key: part.adapter for part in work.parts}.values())
            values = await self._ask("infer", name, Asked.of(work), versions)
        if values is None:
            raise NotReady("a device does not know the adapter, although it was told", retry_after=RETRY_SECONDS)
        return values

    async def load(self, adapter: AdapterVersion) -> None:
        """As `Device.load`, where its requests will run."""
        await self._ask("reside", adapter.name, "load", adapter)

    async def unload(self, adapter: AdapterVersion) -> None:
        await self._everywhere("unload", adapter)

    async def pin(self, adapter: AdapterVersion) -> None:
        """As `Device.pin`, on every device that runs now."""
        try:
            await self._everywhere("pin", adapter)
        except ServiceError:
            await self._everywhere("unpin", adapter)
            raise

    async def unpin(self, adapter: AdapterVersion) -> None:
        await self._everywhere("unpin", adapter)

    async def try_out(self, manifest: Manifest, weights: AdapterWeights) -> None:
        await self._ask("try_out", manifest.name, manifest, weights)

    def residences(self, adapters: Sequence[AdapterVersion]) -> list[Residence]:
        """The nearest that any device has each of them, as was last heard."""
        known = self._fleet.residences
        return [known.get(version.key, _NOWHERE) for version in adapters]

    def occupancy(self) -> Occupancy:
        """Of all devices together."""
        known = self._fleet.known
        resident = [
            (*key, place.is_pinned) for key, place in self._fleet.residences.items() if place.state is State.RESIDENT
        ]
        slots, used, evictions = (sum(getattr(one, field) for one in known) for field in ("slots", "used", "evictions"))
        return Occupancy(slots, used, evictions, resident)

    async def _ask(self, method: str, name: str, *args: Any) -> Any:
        """The answer of one process; where that is gone or cannot, of another, once.

        Raises:
            NotReady: neither could.
        """
        route = Route(name)
        for last in (False, True):
            self.check()
            try:
                reply = await self._channel.ask(method, route, *args)
            except Lost as error:
                if last:
                    told = "the device that ran it was lost, and so was another; try again"
                    raise NotReady(told, retry_after=RETRY_SECONDS) from error
                continue
            if isinstance(reply.value, NotReady) and not last and len(self._fleet.statuses) > 1:
                route = Route(name, reply.replica)
                continue
            return self._taken(reply)
        raise AssertionError("unreachable")

    async def _everywhere(self, how: str, adapter: AdapterVersion) -> None:
        self.check()
        replies = await self._channel.ask_all("reside", how, adapter)
        if not replies:
            raise NotReady("no device is running at the moment", retry_after=RETRY_SECONDS)
        for reply in sorted(replies, key=lambda reply: isinstance(reply.value, ServiceError)):
            self._taken(reply)

    def _taken(self, reply: Reply) -> Any:
        """The reply's value. Raises it where it is an error."""
        if isinstance(reply.value, ServiceError):
            raise reply.value
        if isinstance(reply.value, Status):
            self._fleet.hear(reply.replica, reply.value)
        return reply.value
