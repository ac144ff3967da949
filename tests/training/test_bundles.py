"""The recipes that ship, and the bundles that were trained with them."""

import os
from pathlib import Path

import pytest

from service.model.loading import load_backbone
from service.registry.bundle import read_bundle, read_weights
from service.registry.manifest import parse_manifest
from service.training.evaluate import evaluate
from service.training.recipe import read_recipe

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


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}; set IPET_DEV_DATA")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(path.name for path in BUNDLES.iterdir()))
def test_bundle_reaches_its_figure(name: str) -> None:
    figures = evaluate(BUNDLES / name, DATA / FOLDERS[name], dtype="float32")
    if name in ACCURACY:
        assert figures["accuracy"] > ACCURACY[name]
    else:
        assert figures["noise15db"]["eer"] < NOISY_EER
