"""`ipet evaluate`: a bundle's figures on the report part of a data set, by the mathematics of the server."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from service.model.adapter import AdapterWeights
from service.model.kernels import Weights
from service.model.loading import load_backbone
from service.model.spec import TaskType
from service.registry.bundle import read_bundle, read_weights
from service.registry.manifest import Manifest, parse_manifest
from service.scoring.bootstrap import REPLICATES
from service.training.datasets.dataset import BadDataset, Dataset
from service.training.datasets.load import guess_source, load_dataset
from service.training.figures import measure
from service.training.inference import Inference
from service.training.recordings import Recordings
from service.training.sources import Source


def evaluate(
    bundle: Path,
    data: Path,
    backbone: str = "embedded",
    *,
    device: str = "auto",
    dtype: str = "auto",
    weights: Weights = "auto",
    bootstrap: int = REPLICATES,
) -> dict[str, Any]:
    """Measure a bundle on the report part of a data set, through the kernels that would serve it.

    Args:
        bundle: directory with the bundle's files.
        data: the data set's own folder; how it is split is what the bundle's recipe says, else the layout's default.
        weights: as for `load_backbone`: what `int8` costs is measured with it.
        bootstrap: replicates behind the 95 % confidence intervals; 0 for none.

    Returns:
        JSON-ready: for classification `clips`, `accuracy` (unless clips have several labels), `map`, `per_class`,
        `classes` and `confusion`; for verification by trial list (`clean`, `hard`, `noise15db`, `hard_noise15db`)
        `eer`, `min_dcf_1`, `min_dcf_10` and what the threshold does. `intervals` and how they came about (`bootstrap`)
        stand beside the figures.

    Raises:
        InvalidBundle, BackboneMismatch: the bundle cannot be used, or not on this backbone.
        BadDataset: the folder does not have the layout, or has other labels than the bundle.
    """
    files = read_bundle(bundle)
    manifest = parse_manifest(files.config)
    source = _source(manifest, data)
    _check_task(manifest, source, data)
    dataset = load_dataset(data, source)
    loaded = load_backbone(backbone, device, dtype, for_inference=True, weights=weights)
    tensors = read_weights(files.weights, manifest, loaded.spec)
    _check_labels(manifest, dataset)
    adapter = AdapterWeights.from_tensors(manifest.adapter_spec(), tensors)
    inference = Inference(loaded, adapter, manifest.input_spec())
    recordings = Recordings()
    measured = measure(inference, manifest, dataset.report(), recordings, bootstrap)
    return {
        "name": manifest.name,
        "digest": files.digest,
        "task_type": manifest.task_type.value,
        "backbone": {
            "name": loaded.spec.name,
            "fingerprint": loaded.spec.fingerprint,
            "dtype": _dtype(loaded.dtype),
            "weights": weights,
        },
        **measured.figures,
        **measured.detail,
        "skipped": len(recordings.faults),
    }


def _source(manifest: Manifest, data: Path) -> Source:
    """How the bundle's recipe split this data set, where it says so in a form known here."""
    guessed = guess_source(data)
    try:
        recipe = (manifest.training or {}).get("recipe", {})
        stated: Source = TypeAdapter(Source).validate_python(recipe.get("data"))
    except (ValidationError, AttributeError):
        return guessed
    return stated if stated.kind == guessed.kind else guessed


def _check_task(manifest: Manifest, source: Source, data: Path) -> None:
    if (manifest.task_type is TaskType.VERIFICATION) != source.verification:
        raise BadDataset(f"{data} is not a data set for {manifest.task_type.value}")


def _check_labels(manifest: Manifest, dataset: Dataset) -> None:
    if not dataset.verification and manifest.labels != dataset.labels:
        ours, theirs = set(manifest.labels or ()), set(dataset.labels)
        raise BadDataset(
            f"the bundle's labels differ from those of {dataset.root}: "
            f"only the bundle has {sorted(ours - theirs)[:5]}, only the data set {sorted(theirs - ours)[:5]}"
        )


def _dtype(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
