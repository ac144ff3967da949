"""The recipes that ship, and the bundles that were trained with them."""

import hashlib
import json
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
from service.training.datasets.load import load_dataset
from service.training.evaluate import evaluate
from service.training.figures import measure
from service.training.inference import Inference
from service.training.recipe import read_recipe
from service.training.recordings import Recordings

ROOT = Path(__file__).parents[2]
RECIPES, BUNDLES = ROOT / "adapters" / "recipes", ROOT / "adapters" / "bundles"
DATA = Path(os.environ.get("IPET_DEV_DATA", ROOT.parent / "shared" / "data"))
MEASURED = Path(__file__).with_name("measured.json")
MAX_BUNDLE_BYTES = 2 * 10**6
FOLDERS = {
    "sound-events": "esc10",
    "keywords": "arabic-speech-commands",
    "digits": "fsdd",
    "speaker": "speechocean762-sv",
    "music-style": "../../music-set",  # `python -m tests.music` makes it
}
ACCURACY = {"sound-events": 0.70, "keywords": 0.85, "digits": 0.80, "music-style": 0.50}
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


def there(name: str) -> Path:
    """The recordings of a bundle, without which its test is skipped."""
    folder = DATA / FOLDERS[name]
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}")
    return folder


def figures_of(name: str, backbone: Backbone) -> Mapping[str, Any]:
    """A bundle's figures on its report part, through the kernels that `backbone` has."""
    files, data = read_bundle(BUNDLES / name), there(name)
    manifest = parse_manifest(files.config)
    tensors = read_weights(files.weights, manifest, backbone.spec)
    inference = Inference(
        backbone, AdapterWeights.from_tensors(manifest.adapter_spec(), tensors), manifest.input_spec()
    )
    return measure(
        inference, manifest, load_dataset(data, read_recipe(RECIPES / f"{name}.toml").data).report(), Recordings(), 0
    ).figures


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


def decided_by() -> str:
    """Digest of what the shipped bundles' figures follow from: their weights, their recipes, and the backbone."""
    files = [*BUNDLES.glob("*/adapter_*"), *(RECIPES / f"{name}.toml" for name in FOLDERS)]
    files += [path for path in (ROOT / "service" / "model" / "embedded").iterdir() if path.suffix != ".md"]
    told = [[str(path.relative_to(ROOT)), hashlib.sha256(path.read_bytes()).hexdigest()] for path in sorted(files)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def test_the_slow_figures_are_those_of_what_ships() -> None:
    again = "weights or recipes changed: SLOW=1 python -m pytest tests/training/test_bundles.py -k measured"
    assert json.loads(MEASURED.read_text())["of"] == decided_by(), again


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}; set IPET_DEV_DATA")
@pytest.mark.timeout(1800)
def test_figures_are_measured_again() -> None:
    """Writes what `evaluate` says; of the same weights and recipes it has to say the same."""
    found: dict[str, Any] = {"of": decided_by()}
    folders = {name: there(name) for name in FOLDERS}
    for name, folder in folders.items():
        figures = evaluate(BUNDLES / name, folder, dtype="float32", bootstrap=0)
        keys = ("accuracy", "map") if name in ACCURACY else ("clean", "hard", "noise15db", "hard_noise15db")
        found[name] = {key: figures[key] if name in ACCURACY else figures[key]["eer"] for key in keys}
    before = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    MEASURED.write_text(json.dumps(found, indent=1) + "\n")
    if before.get("of") == found["of"]:
        assert found == before


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}; set IPET_DEV_DATA")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FOLDERS)
def test_bundle_reaches_its_figure(name: str) -> None:
    figures = evaluate(BUNDLES / name, there(name), dtype="float32")
    if name in ACCURACY:
        assert figures["accuracy"] > ACCURACY[name]
    else:
        assert figures["noise15db"]["eer"] < NOISY_EER
