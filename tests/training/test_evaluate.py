from pathlib import Path

import pytest
import torch

from service.errors import BackboneMismatch, InvalidBundle
from service.registry.bundle import read_bundle
from service.registry.manifest import parse_manifest
from service.training.datasets.dataset import BadDataset, Span
from service.training.datasets.load import load_dataset
from service.training.evaluate import _source, evaluate
from service.training.inference import open_bundle
from service.training.loop import train
from service.training.recipe import parse_recipe, read_recipe
from service.training.recordings import Recordings
from service.training.shipped import find_recipe
from service.training.sources import Source
from tests.training.miniature import KEYWORDS, make_keywords, write_clip, write_table

BUNDLES = Path(__file__).parents[2] / "adapters" / "bundles"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_wav2vec2_dir: Path) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    recipe = parse_recipe(
        {
            "name": "kw",
            "task": "classification",
            "backbone": str(tiny_wav2vec2_dir),
            "data": KEYWORDS,
            "input": {"window_frames": 50},
            "optimiser": {"epochs": 1, "batch": 6},
        }
    )
    train(recipe, make_keywords(root / "data"), root / "bundle", dtype="float32", report=False, progress=False)
    return root / "bundle"


def test_figures_are_plain_values(bundle: Path, tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    figures = evaluate(bundle, make_keywords(tmp_path), str(tiny_wav2vec2_dir), dtype="float32")
    assert figures["clips"] == 18
    assert figures["digest"].startswith("sha256:")
    assert figures["backbone"]["dtype"] == "float32"
    assert set(figures["per_class"]) == {"up", "zero", "zoom in"}


def test_clips_of_no_label_are_told_apart(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    data = make_keywords(tmp_path / "data")
    for number in range(3):
        write_clip(tmp_path / "words" / f"{number}.flac", 5000, seed=number)
    fields = {"name": "kw", "task": "classification", "backbone": str(tiny_wav2vec2_dir), "reject": 0.25}
    fields |= {"input": {"window_frames": 30, "windows": "all", "hop_frames": 15, "aggregate": "max"}}
    fields |= {"data": KEYWORDS | {"others": ["../words/*.flac"]}, "optimiser": {"epochs": 2, "batch": 6, "lr": 1e-2}}
    train(parse_recipe(fields), data, tmp_path / "bundle", dtype="float32", progress=False)
    manifest = parse_manifest(read_bundle(tmp_path / "bundle").config)
    assert manifest.input.aggregate == "max"
    bound = manifest.reject_below
    assert bound is not None
    assert 1 / 3 < bound < 1
    figures = evaluate(tmp_path / "bundle", data, str(tiny_wav2vec2_dir), dtype="float32")["unknown"]
    assert figures == (manifest.metrics or {})["report"]["unknown"]
    assert figures["clips"] == 3

    opened = open_bundle(tmp_path / "bundle", str(tiny_wav2vec2_dir), "cpu", "float32")
    heard = opened.inference(Recordings().samples(Span(path)) for path in sorted((tmp_path / "words").iterdir()))
    heat = manifest.calibration.temperature if manifest.calibration else 1.0
    best = [torch.tensor(windows / (heat or 1.0)).softmax(1).amax().item() for windows in heard]
    assert figures["rejected"] == pytest.approx(sum(each < bound for each in best) / 3, abs=1e-4)


def test_a_pattern_of_others_that_finds_nothing_is_told(tmp_path: Path) -> None:
    source = Source.model_validate(KEYWORDS | {"others": ["../words/*"]})
    with pytest.raises(BadDataset, match=r"data\.others \.\./words/\*: no such files"):
        load_dataset(make_keywords(tmp_path / "data"), source).report()


def test_int8_weights_are_measured_as_they_are_served(bundle: Path, tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    data = make_keywords(tmp_path)
    exact, quantised = (evaluate(bundle, data, str(tiny_wav2vec2_dir), weights=name) for name in ("auto", "int8"))
    assert (exact["backbone"]["weights"], quantised["backbone"]["weights"]) == ("auto", "int8")
    assert abs(exact["accuracy"] - quantised["accuracy"]) <= 2 / exact["clips"]


def test_unreadable_clips_are_counted(bundle: Path, tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    data = make_keywords(tmp_path)
    (data / "dataset/up/00000090_NO_00.flac").write_bytes(b"broken")
    figures = evaluate(bundle, data, str(tiny_wav2vec2_dir), dtype="float32")
    assert (figures["clips"], figures["skipped"]) == (17, 1)


def test_another_data_set_is_refused(bundle: Path, tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    data = make_keywords(tmp_path)
    words = ("down", "zero", "zoom in", "up")
    rows = [{"file": f"dataset/up/{n}_{name[:2]}.flac", "class": name} for n in range(2) for name in words]
    write_table(data / "train.csv", rows)
    with pytest.raises(BadDataset, match=r"labels differ.*only the data set \['down'\]"):
        evaluate(bundle, data, str(tiny_wav2vec2_dir))
    with pytest.raises(BadDataset, match=r"train\.csv cannot be read"):
        evaluate(bundle, bundle, str(tiny_wav2vec2_dir))


def test_a_bundle_of_an_older_release_is_split_as_the_recipe_of_its_name(tmp_path: Path) -> None:
    old = {"training": {"recipe": {"data": {"kind": "keywords"}}}}
    manifest = parse_manifest(read_bundle(BUNDLES / "keywords").config).model_copy(update=old)
    assert manifest.training is not None
    assert manifest.training["recipe"]["data"]["kind"] == "keywords"  # which is no kind any more
    assert _source(manifest, tmp_path) == read_recipe(find_recipe("keywords")).data
    unknown = manifest.model_copy(update={"name": "mine"})
    assert _source(unknown, tmp_path).kind == "folders"


def test_another_backbone_is_refused(bundle: Path, tiny_ast_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneMismatch, match="model_type"):
        evaluate(bundle, make_keywords(tmp_path), str(tiny_ast_dir))


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match="missing"):
        evaluate(tmp_path, tmp_path)
