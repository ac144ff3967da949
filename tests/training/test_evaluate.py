from pathlib import Path

import pytest

from service.errors import BackboneMismatch, InvalidBundle
from service.training.datasets.dataset import BadDataset
from service.training.evaluate import evaluate
from service.training.loop import train
from tests.training.miniature import make_digits, make_keywords, make_speakers


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_wav2vec2_dir: Path) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    recipe = root / "recipe.toml"
    recipe.write_text(
        f'name = "kw"\ntask = "classification"\nbackbone = "{tiny_wav2vec2_dir}"\n'
        '[data]\nkind = "keywords"\nselection_speakers = 1\n[input]\nwindow_frames = 50\n'
        "[optimiser]\nepochs = 1\nbatch = 6\n"
    )
    train(recipe, make_keywords(root / "data"), root / "bundle", dtype="float32", report=False, progress=False)
    return root / "bundle"


def test_figures_are_plain_values(bundle: Path, tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    figures = evaluate(bundle, make_keywords(tmp_path), str(tiny_wav2vec2_dir), dtype="float32")
    assert figures["clips"] == 18
    assert figures["digest"].startswith("sha256:")
    assert figures["backbone"]["dtype"] == "float32"
    assert set(figures["per_class"]) == {"up", "zero", "zoom in"}


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
    with pytest.raises(BadDataset, match=r"labels differ.*only the bundle has"):
        evaluate(bundle, make_digits(tmp_path / "digits"), str(tiny_wav2vec2_dir))
    with pytest.raises(BadDataset, match="not a data set for AUDIO_CLASSIFICATION"):
        evaluate(bundle, make_speakers(tmp_path / "speakers"), str(tiny_wav2vec2_dir))
    with pytest.raises(BadDataset, match="no layout known"):
        evaluate(bundle, bundle, str(tiny_wav2vec2_dir))


def test_another_backbone_is_refused(bundle: Path, tiny_ast_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneMismatch, match="model_type"):
        evaluate(bundle, make_keywords(tmp_path), str(tiny_ast_dir))


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match="missing"):
        evaluate(tmp_path, tmp_path)
