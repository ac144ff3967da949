"""The recipes that ship, and the bundles that were trained with them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service.model.adapter import AdapterWeights
from service.model.backbone import Backbone
from service.model.loading import load_backbone
from service.registry.bundle import read_bundle, read_weights
from service.registry.manifest import parse_manifest
from service.training.datasets.load import guess_source, load_dataset
from service.training.evaluate import evaluate
from service.training.figures import measure
from service.training.inference import Inference
from service.training.recipe import read_recipe
from service.training.recordings import Recordings

ROOT = Path(__file__).parents[2]
RECIPES, BUNDLES = ROOT / "adapters" / "recipes", ROOT / "adapters" / "bundles"
DATA = Path(os.environ.get("IPET_DEV_DATA", ROOT.parent / "shared" / "data"))
MAX_BUNDLE_BYTES = 2 * 10**6
FOLDERS = {
    "sound-events": "esc10",
    "keywords": "arabic-speech-commands",
    "digits": "fsdd",
    "speaker": "speechocean762-sv",
}
ACCURACY = {"sound-events": 0.70, "keywords": 0.85, "digits": 0.80}
NOISY_EER = 0.15
SHORT = pytest.mark.xfail(strict=True, reason="falls short of its goal: see Figures in the README")
GOALS = ("sound-events", "keywords", pytest.param("digits", marks=SHORT), "speaker")


@pytest.mark.parametrize("name", FOLDERS)
def test_recipe_is_read(name: str) -> None:
    assert read_recipe(RECIPES / f"{name}.toml").name == name


@pytest.mark.parametrize("name", sorted(path.name for path in BUNDLES.iterdir()))
def test_bundle_fits_the_embedded_backbone(name: str) -> None:
    files = read_bundle(BUNDLES / name)
    manifest = parse_manifest(files.config)
    read_weights(files.weights, manifest, load_backbone("embedded", "cpu", "float32").spec)
    assert manifest.name == name
    assert manifest.backbone.fingerprint is not None
    assert len(files.config) + len(files.weights) <= MAX_BUNDLE_BYTES
    assert "demonstration" in (files.card or b"").decode()


def figures_of(name: str, backbone: Backbone) -> Mapping[str, Any]:
    """A bundle's figures on its report part, through the kernels that `backbone` has."""
    files, data = read_bundle(BUNDLES / name), DATA / FOLDERS[name]
    manifest = parse_manifest(files.config)
    tensors = read_weights(files.weights, manifest, backbone.spec)
    inference = Inference(
        backbone, AdapterWeights.from_tensors(manifest.adapter_spec(), tensors), manifest.input_spec()
    )
    return measure(inference, manifest, load_dataset(data, guess_source(data)).report(), Recordings(), 0).figures


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}; set IPET_DEV_DATA")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(path.name for path in BUNDLES.iterdir()))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_serving_kernels_move_no_figure(name: str, dtype: str) -> None:
    plain, fast = (
        figures_of(name, load_backbone("embedded", "cpu", dtype, for_inference=chosen)) for chosen in (False, True)
    )
    if name in ACCURACY:
        assert abs(plain["accuracy"] - fast["accuracy"]) * plain["clips"] < 1.5  # one clip; figures are rounded
    else:
        assert all(abs(plain[trials]["eer"] - fast[trials]["eer"]) <= 0.003 for trials in plain)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}; set IPET_DEV_DATA")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", GOALS)
def test_bundle_reaches_its_figure(name: str) -> None:
    figures = evaluate(BUNDLES / name, DATA / FOLDERS[name], dtype="float32")
    if name in ACCURACY:
        assert figures["accuracy"] > ACCURACY[name]
    else:
        assert figures["noise15db"]["eer"] < NOISY_EER
