"""Whole runs on miniature data sets: they learn, they export what they measured, and they keep the report part shut."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from service.errors import BackboneMismatch, InvalidBundle
from service.model.adapter import AdapterWeights
from service.model.loading import load_backbone
from service.registry.bundle import read_bundle, read_weights
from service.registry.manifest import parse_manifest
from service.training.datasets.dataset import BadDataset
from service.training.evaluate import evaluate
from service.training.inference import Inference
from service.training.loop import TrainingResult, train
from service.training.recipe import BadRecipe
from service.training.recordings import Recordings
from tests.training.miniature import make_digits, make_esc, make_fsd50k, make_keywords, make_speakers, write_clip

WriteRecipe = Callable[..., Path]


def classifier(backbone: Path, **tables: Any) -> dict[str, Any]:
    return {
        "name": "kw",
        "task": "classification",
        "backbone": str(backbone),
        "data": {"kind": "keywords", "selection_speakers": 1},
        "input": {"window_frames": 50},
        "adapter": {"prompt_length": 4, "bottleneck_dim": 8},
        "optimiser": {"epochs": 12, "batch": 6, "lr": 1e-2},
        "augment": {"gain": 6, "views": 3},
        **tables,
    }


def verifier(backbone: Path, **tables: Any) -> dict[str, Any]:
    return {
        "name": "who",
        "task": "verification",
        "backbone": str(backbone),
        "data": {"kind": "speakers", "selection_speakers": 2, "condition_noise": "../noise"},
        "input": {"window_frames": 60, "windows": 2},
        "adapter": {"embedding_dim": 8, "head_start": "discriminants"},
        "optimiser": {"epochs": 6, "batch": 8, "lr": 1e-2},
        "loss": {"kind": "am_softmax", "scale": 15.0},
        "augment": {"noise": 0.5, "noise_files": ["../noise/*"]},
        **tables,
    }


def run(recipe: Path, data: Path, out: Path, **options: Any) -> TrainingResult:
    return train(recipe, data, out, device="cpu", dtype="float32", progress=False, **options)


def test_keywords_are_learnt(write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    data, out = make_keywords(tmp_path / "data", speakers=6), tmp_path / "out"
    result = run(write_recipe(**classifier(tiny_wav2vec2_dir)), data, out)
    assert result.metrics["report"]["accuracy"] > 0.7  # chance: 0.33
    assert result.epochs[-1].loss < result.epochs[0].loss
    assert result.manifest.labels == ("up", "zero", "zoom in")
    measured = evaluate(out, data, str(tiny_wav2vec2_dir), device="cpu", dtype="float32")
    assert {key: measured[key] for key in result.metrics["report"]} == result.metrics["report"]
    card = (out / "README.md").read_text()
    assert all(f"]({name}.png)" in card and (out / f"{name}.png").is_file() for name in ("training", "confusion"))
    low, high = result.metrics["report"]["intervals"]["accuracy"]
    assert f"| report.accuracy | {result.metrics['report']['accuracy']} | {low:.4f} to {high:.4f} |" in card


def test_ast_learns_sound_events(write_recipe: WriteRecipe, tiny_ast_dir: Path, tmp_path: Path) -> None:
    data = make_esc(tmp_path / "data", clips=4)
    tables = classifier(
        tiny_ast_dir,
        data={"kind": "esc"},
        input={"window_frames": 96, "mean": -7.0, "std": 4.0},
        augment={"time_mask": 10, "frequency_mask": 10, "input_noise": True},
        refit=True,
    )
    result = run(write_recipe(**tables), data, tmp_path / "out")
    assert result.metrics["report"]["accuracy"] > 0.7
    assert result.manifest.input_spec().mean == -7.0
    assert "trained anew" in (tmp_path / "out" / "README.md").read_text()


def test_digits_with_every_class_its_own_sigmoid(
    write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path
) -> None:
    tables = classifier(
        tiny_wav2vec2_dir, data={"kind": "digits"}, loss={"kind": "binary_cross_entropy"}, dtype="float16"
    )
    result = run(write_recipe(**tables), make_digits(tmp_path / "data"), tmp_path / "out")
    assert result.manifest.activation == "sigmoid"
    assert result.metrics["report"]["clips"] == 9


def test_speakers_are_told_apart(write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    data, out = make_speakers(tmp_path / "data"), tmp_path / "out"
    result = run(write_recipe(**verifier(tiny_wav2vec2_dir)), data, out)
    report = result.metrics["report"]
    assert list(report) == ["clean", "hard", "noise15db", "hard_noise15db"]
    assert report["clean"]["eer"] < 0.4
    assert result.parameters["training_only"] == 4 * 8  # the classifier over four speakers, which is not exported
    calibration = result.manifest.calibration
    assert calibration is not None
    assert calibration.slope is not None
    assert calibration.slope > 0
    measured = evaluate(out, data, str(tiny_wav2vec2_dir), device="cpu", dtype="float32")
    assert {name: measured[name] for name in report} == report
    assert (out / "det.png").is_file()
    assert "](det.png)" in (out / "README.md").read_text()


def test_parts_of_version_2_are_trained_and_exported(
    write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path
) -> None:
    data, out = make_speakers(tmp_path / "data"), tmp_path / "out"
    tables = verifier(
        tiny_wav2vec2_dir,
        adapter={"embedding_dim": 8, "head_start": "discriminants", "layer_aggregation": True},
        optimiser={"epochs": 2, "batch": 8, "lr": 1e-2},
    )
    result = run(write_recipe(**tables), data, out)
    assert result.manifest.format_version == 2
    assert result.metrics["report"]["clean"]["eer"] < 0.4
    measured = evaluate(out, data, str(tiny_wav2vec2_dir), device="cpu", dtype="float32")
    assert {name: measured[name] for name in result.metrics["report"]} == result.metrics["report"]
    card = (out / "README.md").read_text()
    assert "weighted sum of all layers" in card


def test_what_no_server_would_take_is_refused_before_the_first_step(
    write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path
) -> None:
    data = make_keywords(tmp_path / "data")
    with pytest.raises(InvalidBundle, match="input_prompt: expected 0"):
        run(write_recipe(**classifier(tiny_wav2vec2_dir, adapter={"input_prompt": 4})), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_bundle_answers_as_the_trainer_did(
    write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path, dtype: str
) -> None:
    data, out = make_keywords(tmp_path / "data"), tmp_path / "out"
    result = run(write_recipe(**classifier(tiny_wav2vec2_dir), dtype=dtype), data, out)
    files = read_bundle(out)
    manifest = parse_manifest(files.config)
    assert manifest == result.manifest
    backbone = load_backbone(str(tiny_wav2vec2_dir), "cpu", "float32")
    tensors = read_weights(files.weights, manifest, backbone.spec)
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    weights = AdapterWeights.from_tensors(manifest.adapter_spec(), tensors)
    assert manifest.backbone.fingerprint == backbone.spec.fingerprint
    assert manifest.training is not None
    assert str(tmp_path) not in files.config.decode().replace(str(tiny_wav2vec2_dir), "")
    clip = Recordings().samples(data / "dataset/up/00000000_NO_00.flac")
    (windows,) = Inference(backbone, weights, manifest.input_spec())([clip])
    assert windows.shape == (1, 3)


def test_the_report_part_changes_nothing_before_the_end(
    write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the report part is opened while training, and without it the same adapter comes out."""
    data = make_keywords(tmp_path / "data")
    recipe = write_recipe(**classifier(tiny_wav2vec2_dir, optimiser={"epochs": 2, "batch": 6}))
    opened: list[str] = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (opened.append(path.name), read(path))[1])
    run(recipe, data, tmp_path / "whole")
    report = [name.startswith(("00000090", "00000091")) for name in opened]
    assert report == sorted(report), "report clips were read before the last training clip"
    assert any(report)
    shutil.rmtree(data / "dataset" / "up", ignore_errors=False)
    data = make_keywords(tmp_path / "data")
    for path in data.rglob("0000009*"):
        path.write_bytes(b"poison")
    with pytest.raises(BadDataset, match="none of 18 clips"):
        run(recipe, data, tmp_path / "kept")
    (data / "val.csv").write_text("poison")
    run(recipe, data, tmp_path / "poisoned", report=False)
    weights = [read(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "poisoned", "kept")]
    assert weights[0] == weights[1]
    assert weights[0] == weights[2]  # an unreadable report part costs no training


def test_report_lists_that_cannot_be_used_are_refused_before_the_first_step(
    write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path
) -> None:
    data = make_keywords(tmp_path / "data")
    recipe = write_recipe(**classifier(tiny_wav2vec2_dir))
    for text, said in (("poison", r"val\.csv"), ("file,class\ndataset/down/1_a.flac,down\n", "label 'down'")):
        (data / "val.csv").write_text(text)
        with pytest.raises(BadDataset, match=said):
            run(recipe, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_clips_under_one_frame_are_refused_before_the_first_step(
    write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path
) -> None:
    data = make_keywords(tmp_path / "data")
    write_clip(data / "dataset/up/00000000_NO_00.flac", 300, seconds=0.02)
    with pytest.raises(BadDataset, match=r"1 clips are shorter than one frame .*00000000_NO_00\.flac"):
        run(write_recipe(**classifier(tiny_wav2vec2_dir)), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_labels_a_clip(write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    data, out = make_fsd50k(tmp_path / "data"), tmp_path / "out"
    tables = classifier(tiny_wav2vec2_dir, data={"kind": "fsd50k"}, input={"window_frames": 60})
    with pytest.raises(BadRecipe, match="use binary_cross_entropy"):
        run(write_recipe(**tables), data, out)
    tables |= {
        "loss": {"kind": "binary_cross_entropy"},
        "optimiser": {"epochs": 7, "batch": 6, "lr": 1e-2},
        "augment": {},
    }
    result = run(write_recipe(**tables), data, out, workers=1)
    assert result.manifest.activation == "sigmoid"
    assert result.epochs[-1].loss < 0.9 * result.epochs[0].loss


def test_full_fine_tuning_leaves_a_backbone_and_a_head_for_it(
    write_recipe: WriteRecipe, tiny_ast_dir: Path, tmp_path: Path
) -> None:
    data, out = make_esc(tmp_path / "data", clips=2), tmp_path / "out"
    tables = classifier(
        tiny_ast_dir,
        method="full",
        data={"kind": "esc"},
        input={"window_frames": 64, "mean": -7.0, "std": 4.0},
        optimiser={"epochs": 4, "batch": 6, "lr": 1e-3},
    )
    result = run(write_recipe(**tables), data, out)
    assert result.epochs[-1].loss < result.epochs[0].loss
    files = read_bundle(out)
    manifest = parse_manifest(files.config)
    served = load_backbone(str(out / "backbone"), "cpu", "float32")
    original = load_backbone(str(tiny_ast_dir), "cpu", "float32")
    assert manifest.backbone.fingerprint == served.spec.fingerprint != original.spec.fingerprint
    assert (manifest.prompt_length, manifest.bottleneck_dim) == (0, 0)
    assert set(read_weights(files.weights, manifest, served.spec)) == {
        "head.norm.weight",
        "head.norm.bias",
        "head.linear.weight",
        "head.linear.bias",
    }
    assert result.parameters["trainable"] == result.parameters["head"] + original.spec.parameters
    measured = evaluate(out, data, str(out / "backbone"), device="cpu", dtype="float32")
    assert {key: measured[key] for key in result.metrics["report"]} == result.metrics["report"]
    with pytest.raises(BackboneMismatch, match="fingerprint"):
        evaluate(out, data, str(tiny_ast_dir), device="cpu", dtype="float32")


def test_counts_are_told_before_training(
    write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(**classifier(tiny_wav2vec2_dir, optimiser={"epochs": 1, "batch": 6}))
    result = train(recipe, make_keywords(tmp_path / "data"), tmp_path / "out", dtype="float32", report=False)
    line = f"ipet: {result.parameters['trainable']:,} trainable parameters (prompt 576, adapter 2,472, head "
    told = " ".join(capsys.readouterr().out.split())
    assert line in told
    assert f"{result.parameters['trainable']:,} parameters" in (tmp_path / "out" / "README.md").read_text()


def test_faulty_clips_are_left_out_and_counted(
    write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path
) -> None:
    data = make_keywords(tmp_path / "data")
    (data / "dataset/up/00000000_NO_00.flac").write_bytes(b"broken")
    (data / "dataset/up/00000000_NO_01.flac").unlink()
    recipe = write_recipe(**classifier(tiny_wav2vec2_dir, optimiser={"epochs": 1, "batch": 6}))
    result = run(recipe, data, tmp_path / "out", report=False)
    assert result.skipped == 2
    assert "`00000000_NO_00.flac`" in (tmp_path / "out" / "README.md").read_text()


def test_an_unreadable_class_stops_before_the_first_step(
    write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path
) -> None:
    data = make_keywords(tmp_path / "data")
    for path in (data / "dataset" / "up").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(BadDataset, match="no readable training clip of up"):
        run(write_recipe(**classifier(tiny_wav2vec2_dir)), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("backbone", "tables", "error", "said"),
    [
        ("tiny_ast_dir", {}, BadRecipe, r"input\.mean and input\.std: missing"),
        (
            "tiny_ast_dir",
            {"input": {"window_frames": 3, "mean": 0.0, "std": 1.0}},
            BadRecipe,
            "too short for the backbone",
        ),
        ("tiny_wav2vec2_dir", {"augment": {"time_mask": 5}}, BadRecipe, "for AST backbones only"),
        ("tiny_wav2vec2_dir", {"data": {"kind": "esc"}}, BadDataset, r"esc50\.csv cannot be read"),
        ("tiny_wav2vec2_dir", {"adapter": {"scale": 1e9}}, InvalidBundle, "adapter_scale"),
    ],
)
def test_what_cannot_be_trained_is_said_at_once(
    write_recipe: WriteRecipe,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    backbone: str,
    tables: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    recipe = write_recipe(**classifier(request.getfixturevalue(backbone), **tables))
    with pytest.raises(error, match=said):
        run(recipe, make_keywords(tmp_path / "data"), tmp_path / "out")
