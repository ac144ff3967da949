"""A backbone whose own weights learn, for full fine-tuning: the one forward over tensors that take gradients.

Everywhere else a backbone is frozen. Knows no adapters and no training loop.
"""

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from service.model.backbone import Backbone
from service.model.checkpoint import save_checkpoint
from service.model.loading import build_backbone, load_backbone_checkpoint


class TrainableBackbone(nn.Module):
    """The parameters of a backbone, in float32, under their published names with dots as double underscores.

    Args:
        frozen: the backbone as loaded, whose name, device and dtype this one has.
    """

    def __init__(self, frozen: Backbone) -> None:
        super().__init__()
        self._spec, self._device, self._dtype = frozen.spec, frozen.device, frozen.dtype
        self._checkpoint = load_backbone_checkpoint(frozen.spec.name)
        for name, tensor in self._checkpoint.tensors.items():
            self.register_parameter(name.replace(".", "__"), nn.Parameter(tensor.to(frozen.device, copy=True)))

    def backbone(self, tensors: dict[str, Tensor] | None = None) -> Backbone:
        """The forward over a snapshot, or over the parameters as they are now, which gradients reach.

        Cheap beside one forward; its description is still that of the backbone as loaded.
        """
        given = self._named() if tensors is None else tensors
        return build_backbone(replace(self._checkpoint, tensors=given), self._spec, self._device, self._dtype)

    def snapshot(self) -> dict[str, Tensor]:
        """Detached copies of the parameters on the CPU, under their published names."""
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self._named().items()}

    def fingerprint(self, tensors: dict[str, Tensor]) -> str:
        """The fingerprint of a snapshot."""
        return replace(self._checkpoint, tensors=tensors).fingerprint()

    def save(self, tensors: dict[str, Tensor], directory: Path) -> None:
        """Write a snapshot as a Hugging Face directory, which `ipet serve --backbone` takes."""
        save_checkpoint(replace(self._checkpoint, tensors=tensors), directory)

    def _named(self) -> dict[str, Tensor]:
        return {name.replace("__", "."): parameter for name, parameter in self.named_parameters()}
