"""Many clips through one adapter, with the windows, forward and head of the server."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.audio.features import InputSpec
from service.model.adapter import AdapterWeights
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.kernels import Weights
from service.model.loading import load_backbone
from service.registry.bundle import BundleFiles, read_bundle, read_weights, write_bundle
from service.registry.manifest import Manifest, build_manifest, parse_manifest
from service.training.recordings import Samples

ROWS = 48  # windows in one forward
REPORT = "calibration.json"


@dataclass(frozen=True, slots=True)
class Opened:
    """A bundle on its backbone."""

    files: BundleFiles
    manifest: Manifest
    tensors: dict[str, Tensor]
    backbone: Backbone
    inference: "Inference"

    def calibrated(self, out: Path, changes: Mapping[str, Any], kind: str, report: dict[str, Any]) -> dict[str, Any]:
        """Write the bundle with its tensors as they are now and other fields, and the report beside it and in it.

        Args:
            changes: fields of the manifest; None removes one.
            kind: what the report is called among the metrics.
        """
        fields = json.loads(self.files.config) | changes
        fields["metrics"] = (fields.get("metrics") or {}) | {kind: report}
        manifest = build_manifest(
            {name: value for name, value in fields.items() if name not in changes or value is not None}
        )
        write_bundle(out, manifest, self.tensors, None if self.files.card is None else self.files.card.decode())
        (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        return report


def open_bundle(bundle: Path, backbone: str, device: str, dtype: str, weights: Weights = "auto") -> Opened:
    """Read a bundle's directory, through the kernels that would serve it. Raises InvalidBundle, BackboneMismatch."""
    files = read_bundle(bundle)
    manifest = parse_manifest(files.config)
    loaded = load_backbone(backbone, device, dtype, for_inference=True, weights=weights)
    tensors = read_weights(files.weights, manifest, loaded.spec)
    adapter = AdapterWeights.from_tensors(manifest.adapter_spec(), tensors)
    return Opened(files, manifest, tensors, loaded, Inference(loaded, adapter, manifest.input_spec()))


class Inference:
    """An adapter on its backbone, ready to answer."""

    def __init__(self, backbone: Backbone, weights: AdapterWeights, spec: InputSpec) -> None:
        self._backbone = backbone
        self._spec = spec
        with torch.no_grad():
            self._bank = Bank.of(backbone, [weights])

    def __call__(self, clips: Iterable[Samples]) -> Iterator[NDArray[np.float32]]:
        """Samples `[N]` of each clip -> the head's raw outputs for its windows `[W, outputs]`, in order."""
        waiting: list[Tensor] = []
        for samples in clips:
            waiting.append(self._backbone.features.windows(torch.from_numpy(samples), self._spec).inputs)
            if sum(map(len, waiting)) >= ROWS:
                yield from self.answers(waiting)
                waiting = []
        if waiting:
            yield from self.answers(waiting)

    @torch.no_grad()
    def answers(self, clips: list[Tensor]) -> list[NDArray[np.float32]]:
        """Inputs `[W, ...]` of each clip -> raw outputs `[W, outputs]` of each."""
        rows = torch.cat(clips)
        outputs = [
            self._backbone.answer(block, self._bank, [1] * len(block)).cpu() for block in torch.split(rows, ROWS)
        ]
        ends = np.cumsum([len(clip) for clip in clips])[:-1]
        return np.split(torch.cat(outputs).numpy(), ends)
