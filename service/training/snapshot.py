"""What was learnt, detached from the training that goes on: the adapter and, if that was trained, the backbone."""

from dataclasses import dataclass

from torch import Tensor

from service.model.adapter import AdapterWeights
from service.model.spec import AdapterSpec

_BACKBONE = "backbone."


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An adapter and the tensors of the backbone under it; None where the backbone is frozen."""

    weights: AdapterWeights
    backbone: dict[str, Tensor] | None = None

    def to_tensors(self) -> dict[str, Tensor]:
        """All tensors under one name each, the backbone's behind a prefix."""
        backbone = {f"{_BACKBONE}{name}": tensor for name, tensor in (self.backbone or {}).items()}
        return self.weights.to_tensors() | backbone

    @classmethod
    def from_tensors(cls, spec: AdapterSpec, tensors: dict[str, Tensor]) -> "Snapshot":
        """The inverse of `to_tensors`."""
        backbone = {n.removeprefix(_BACKBONE): t for n, t in tensors.items() if n.startswith(_BACKBONE)}
        adapter = {name: tensor for name, tensor in tensors.items() if not name.startswith(_BACKBONE)}
        return cls(AdapterWeights.from_tensors(spec, adapter), backbone or None)
