"""`ipet evaluate`: a bundle's figures on the report part of a data set, by the mathematics of the server."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.model.kernels import Weights
from service.model.spec import TaskType
from service.registry.manifest import Manifest
from service.scoring.bootstrap import REPLICATES
from service.timeline.parameters import BACKGROUND
from service.training.datasets.dataset import BadDataset
from service.training.datasets.load import guess_source, load_dataset
from service.training.figures import measure
from service.training.inference import open_bundle
from service.training.recipe import read_recipe
from service.training.recordings import Recordings
from service.training.shipped import shipped_recipes
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
        data: the data set's own folder; how it is split is what the bundle's recipe says.
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
    opened = open_bundle(bundle, backbone, device, dtype, weights)
    manifest, spec = opened.manifest, opened.backbone.spec
    source = _source(manifest, data)
    if (manifest.task_type is TaskType.VERIFICATION) != source.verification:
        raise BadDataset(f"{data} is not a data set for {manifest.task_type.value}")
    dataset = load_dataset(data, source)
    if BACKGROUND in (manifest.labels or ()):  # which training may have added
        dataset = dataset.with_background()
    if not dataset.verification and manifest.labels != dataset.labels:
        ours, theirs = set(manifest.labels or ()), set(dataset.labels)
        raise BadDataset(
            f"the bundle's labels differ from those of {dataset.root}: "
            f"only the bundle has {sorted(ours - theirs)[:5]}, only the data set {sorted(theirs - ours)[:5]}"
        )
    recordings = Recordings()
    measured = measure(opened.inference, manifest, dataset.report(), recordings, bootstrap)
    told = {"name": spec.name, "fingerprint": spec.fingerprint, "weights": weights}
    return {
        "name": manifest.name,
        "digest": opened.files.digest,
        "task_type": manifest.task_type.value,
        "backbone": told | {"dtype": str(opened.backbone.dtype).removeprefix("torch.")},
        **measured.figures,
        **measured.detail,
        "skipped": len(recordings.faults),
    }


def _source(manifest: Manifest, data: Path) -> Source:
    """How the bundle's recipe split the data set, else the recipe of its name that ships, else what the folder is."""
    stated = (manifest.training or {}).get("recipe")
    try:
        return Source.model_validate(stated["data"] if isinstance(stated, dict) else None)
    except (ValidationError, KeyError):  # none, or one of an older release
        shipped = shipped_recipes().get(manifest.name)
        return guess_source(data) if shipped is None else read_recipe(shipped).data
