"""The seam between those who ask and what computes: windows in, outputs out, both numpy.

What is behind it may be this process, another one or another machine; what is before it knows clips, tasks and answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.engine.job import Values
from service.engine.slots import Residence
from service.model.adapter import AdapterWeights
from service.registry.manifest import Manifest
from service.registry.store import AdapterVersion


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
    """

    parts: Sequence[Part]
    deadline: float


class Device(Protocol):
    """Something that holds the backbone and runs adapters on it."""

    async def infer(self, work: Work) -> list[Values]:
        """Each part's outputs `[W, C]`: logits, or embeddings as the head gives them. Cancelling drops what waits.

        Raises:
            NotReady: the device is stopping, hangs or fails.
            AdapterFailed, NoFreeSlot: an adapter that has to be loaded cannot be.
        """

    async def load(self, adapter: AdapterVersion) -> None:
        """Makes an adapter resident. Raises AdapterFailed, NoFreeSlot and NotReady."""

    def try_out(self, manifest: Manifest, weights: AdapterWeights) -> None:
        """The first inference of an upload; in the thread of whoever publishes it.

        Raises:
            InvalidBundle: the adapter is at fault. DeadlineExceeded, NotReady: nothing can be said of it now.
        """

    def residences(self, adapters: Sequence[AdapterVersion]) -> list[Residence]:
        """Where each of `adapters` is."""
