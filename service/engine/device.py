"""The seam between those who ask and what computes: windows in, outputs out, both numpy.

What is behind it may be this process, another one or another machine; what is before it knows clips, tasks and answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.audio.features import Features
from service.engine.cost import Costs
from service.engine.job import Values
from service.engine.slots import Residence
from service.errors import NotReady
from service.model.adapter import AdapterWeights
from service.registry.manifest import Manifest
from service.registry.store import AdapterVersion, Registry
from service.telemetry import Occupancy


@dataclass(frozen=True, slots=True)
class Part:
    """Windows `[W, ...]`, float32, of one clip and the adapter that reads them; parts may share them by identity."""

    adapter: AdapterVersion
    windows: Values
    window_frames: int


@dataclass(frozen=True, slots=True)
class Work:
    """What one request wants computed.

    Args:
        deadline: on the clock of `time.monotonic`; after it nobody wants the outputs.
        patient: whether it gives way to what somebody waits for, as a recording's next minute does.
    """

    parts: Sequence[Part]
    deadline: float
    patient: bool = False


class Device(Protocol):
    """Something that holds the backbone and runs adapters on it. What is here may be called from any thread.

    Attributes:
        features: what the backbone's front end reads of a clip.
        costs: what a row of so many frames costs.
    """

    features: Features
    costs: Costs

    @property
    def rate(self) -> float:
        """Window-frames that it answers a second at the moment; 0 where that is not known."""

    def check(self, adapters: Sequence[AdapterVersion] = ()) -> None:
        """Raises NotReady while nothing can be run, and AdapterFailed for one whose load hangs or failed just now."""

    def start(self, registry: Registry, on_dead: Callable[[NotReady], None]) -> None:
        """Gets it ready to run what comes.

        Args:
            registry: where adapters are loaded from.
            on_dead: called, from a thread of the device's, when only another process could use it again.
        """

    def stop(self, timeout: float) -> bool:
        """Runs nothing more, within so many seconds; whether it has returned from its last batch."""

    async def infer(self, work: Work) -> list[Values]:
        """Each part's outputs `[W, C]`: logits, or embeddings as the head gives them. Cancelling drops what waits.

        Raises:
            NotReady: the device is stopping, hangs or fails.
            AdapterFailed, NoFreeSlot: an adapter that has to be loaded cannot be.
        """

    async def load(self, adapter: AdapterVersion) -> None:
        """Makes an adapter resident. Raises AdapterFailed, NoFreeSlot and NotReady."""

    async def unload(self, adapter: AdapterVersion) -> None:
        """Frees the slot of `adapter` as soon as nothing runs on it, and lifts its pin."""

    async def pin(self, adapter: AdapterVersion) -> None:
        """Makes `adapter` resident and keeps it from eviction, until it is unpinned, unloaded or deleted.

        Raises:
            UnknownVersion: it has been deleted.
            AdapterFailed, NoFreeSlot, NotReady: it cannot be loaded, and is not pinned then.
        """

    async def unpin(self, adapter: AdapterVersion) -> None:
        """Lets it be evicted again."""

    async def try_out(self, manifest: Manifest, weights: AdapterWeights) -> None:
        """The first inference of an upload.

        Raises:
            InvalidBundle: the adapter is at fault. DeadlineExceeded, NotReady: nothing can be said of it now.
        """

    def residences(self, adapters: Sequence[AdapterVersion]) -> list[Residence]:
        """Where each of `adapters` is."""

    def occupancy(self) -> Occupancy:
        """What its slots hold now."""
