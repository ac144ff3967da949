"""Whole runs on miniature data sets: they learn, they export what they measured, and they keep the report part shut."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.errors import BackboneMismatch, InvalidBundle
from service.model.adapter import AdapterWeights
from service.model.loading import load_backbone
from service.registry.bundle import read_bundle, read_weights
from service.registry.manifest import parse_manifest
from service.training import answers as answers_module
from service.training import selection
from service.training.answers import ClassAnswers
from service.training.checkpoint import read_epochs
from service.training.datasets.dataset import BadDataset, Clip
from service.training.evaluate import evaluate
from service.training.inference import Inference
from service.training.loop import train
from service.training.outcome import Outcome
from service.training.recipe import BadRecipe, Recipe, parse_recipe, read_recipe
from service.training.recordings import Recordings
from service.training.shipped import find_recipe
from tests.training.miniature import (
    DIGITS,
    ESC,
    KEYWORDS,
    SPEAKERS,
    make_digits,
    make_esc,
    make_fsd50k,
    make_keywords,
    make_speakers,
    make_table,
    write_clip,
)


def classifier(backbone: Path, **tables: Any) -> dict[str, Any]:
    return {
        "name": "kw",
        "task": "classification",
        "backbone": str(backbone),
        "data": KEYWORDS,
        "input": {"window_frames": 50},
        "adapter": {"prompt_length": 4, "bottleneck_dim": 8},
        "optimiser": {"epochs": 8, "batch": 6, "lr": 1e-2},
        "augment": {"gain": 6, "views": 3},
        **tables,
    }


def verifier(backbone: Path, **tables: Any) -> dict[str, Any]:
    return {
        "name": "who",
        "task": "verification",
        "backbone": str(backbone),
        "data": SPEAKERS,
        "input": {"window_frames": 60, "windows": 2},
        "adapter": {"embedding_dim": 8, "head_start": "discriminants"},
        "optimiser": {"epochs": 6, "batch": 8, "lr": 1e-2},
        "loss": {"kind": "am_softmax", "scale": 15.0},
        "augment": {"noise": 0.5, "noise_files": ["../noise/*"]},
        **tables,
    }


def run(recipe: Recipe, data: Path, out: Path, **options: Any) -> Outcome:
    return train(recipe, data, out, device="cpu", dtype="float32", progress=False, **options)


def losses(result: Outcome) -> list[float]:
    return [each.loss for each in read_epochs(result.directory)]


def test_keywords_are_learnt(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    data, out = make_keywords(tmp_path / "data", speakers=6), tmp_path / "out"
    tables = classifier(tiny_wav2vec2_dir, optimiser={"epochs": 12, "batch": 6, "lr": 1e-2})
    result = run(parse_recipe(tables), data, out)
    assert result.metrics["report"]["accuracy"] > 0.7  # chance: 0.33
    assert losses(result)[-1] < losses(result)[0]
    assert result.manifest.labels == ("up", "zero", "zoom in")
    measured = evaluate(out, data, str(tiny_wav2vec2_dir), device="cpu", dtype="float32")
    assert {key: measured[key] for key in result.metrics["report"]} == result.metrics["report"]
    card = (out / "README.md").read_text()
    assert all(f"]({name}.png)" in card and (out / f"{name}.png").is_file() for name in ("training", "confusion"))
    low, high = result.metrics["report"]["intervals"]["accuracy"]
    assert f"| report.accuracy | {result.metrics['report']['accuracy']} | {low:.4f} to {high:.4f} |" in card


def test_ast_learns_sound_events(tiny_ast_dir: Path, tmp_path: Path) -> None:
    data = make_esc(tmp_path / "data", clips=4)
    tables = classifier(
        tiny_ast_dir,
        data=ESC,
        input={"window_frames": 96, "mean": -7.0, "std": 4.0},
        augment={"time_mask": 10, "frequency_mask": 10, "input_noise": True},
        adapter={"prompt_length": 4, "bottleneck_dim": 8, "head_start": "discriminants"},
        optimiser={"epochs": 3, "batch": 6, "lr": 1e-3},
        refit=True,
    )
    result = run(parse_recipe(tables), data, tmp_path / "out")
    assert result.metrics["report"]["accuracy"] > 0.7
    assert result.manifest.input_spec().mean == -7.0
    assert "trained anew" in (tmp_path / "out" / "README.md").read_text()


def test_digits_with_every_class_its_own_sigmoid(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    tables = classifier(
        tiny_wav2vec2_dir,
        data=DIGITS,
        loss={"kind": "binary_cross_entropy"},
        optimiser={"epochs": 2, "batch": 6},
        dtype="float16",
    )
    result = run(parse_recipe(tables), make_digits(tmp_path / "data"), tmp_path / "out")
    assert result.manifest.activation == "sigmoid"
    assert result.metrics["report"]["clips"] == 9


def test_speakers_are_told_apart(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    data, out = make_speakers(tmp_path / "data"), tmp_path / "out"
    result = run(parse_recipe(verifier(tiny_wav2vec2_dir)), data, out)
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


def test_parts_of_version_2_are_trained_and_exported(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    data, out = make_speakers(tmp_path / "data"), tmp_path / "out"
    tables = verifier(
        tiny_wav2vec2_dir,
        adapter={"embedding_dim": 8, "head_start": "discriminants", "layer_aggregation": True},
        optimiser={"epochs": 2, "batch": 8, "lr": 1e-2},
    )
    result = run(parse_recipe(tables), data, out)
    assert result.manifest.format_version == 2
    assert result.metrics["report"]["clean"]["eer"] < 0.4
    measured = evaluate(out, data, str(tiny_wav2vec2_dir), device="cpu", dtype="float32")
    assert {name: measured[name] for name in result.metrics["report"]} == result.metrics["report"]
    card = (out / "README.md").read_text()
    assert "| layer aggregation | True |" in card


def test_what_no_server_would_take_is_refused_before_the_first_step(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    data = make_keywords(tmp_path / "data")
    with pytest.raises(InvalidBundle, match="input_prompt: expected 0"):
        run(parse_recipe(classifier(tiny_wav2vec2_dir, adapter={"input_prompt": 4})), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "refit"), [("float32", False), ("float16", True)])
def test_the_bundle_answers_as_the_trainer_did(
    tiny_wav2vec2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, refit: bool
) -> None:
    """Clip by clip and to the last bit: what settled threshold and figures are the weights that ship."""
    answered: list[tuple[tuple[Clip, ...], ClassAnswers]] = []

    def answer_clips(inference: Inference, clips: tuple[Clip, ...], *means: Any) -> ClassAnswers:
        answers = answers_module.answer_clips(inference, clips, *means)
        answered.append((clips, answers))
        return answers

    monkeypatch.setattr(selection, "answer_clips", answer_clips)
    data, out = make_keywords(tmp_path / "data"), tmp_path / "out"
    optimiser = {"epochs": 2, "batch": 6, "lr": 1e-2}
    tables = classifier(tiny_wav2vec2_dir, dtype=dtype, refit=refit, optimiser=optimiser)
    result = run(parse_recipe(tables), data, out, report=False)
    files = read_bundle(out)
    manifest = parse_manifest(files.config)
    assert manifest == result.manifest
    backbone = load_backbone(str(tiny_wav2vec2_dir), "cpu", "float32")
    tensors = read_weights(files.weights, manifest, backbone.spec)
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    weights = AdapterWeights.from_tensors(manifest.adapter_spec(), tensors)
    assert manifest.backbone.fingerprint == backbone.spec.fingerprint
    assert str(tmp_path) not in files.config.decode().replace(str(tiny_wav2vec2_dir), "")
    clips, settled = answered[-1]
    recordings = Recordings()
    inference = Inference(backbone, weights, manifest.input_spec())
    served = list(inference(recordings.samples(clip.span) for clip in clips))
    assert len(served) == len(settled.logits) >= 3
    for ours, theirs in zip(served, settled.logits, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    right = [clip.target == logits.mean(axis=0).argmax() for clip, logits in zip(clips, served, strict=True)]
    assert result.metrics["selection"]["accuracy"] == pytest.approx(np.mean(right), abs=1e-4)


def test_the_report_part_changes_nothing_before_the_end(
    tiny_wav2vec2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the report part is opened while training, and without it the same adapter comes out."""
    data = make_keywords(tmp_path / "data")
    recipe = parse_recipe(classifier(tiny_wav2vec2_dir, optimiser={"epochs": 2, "batch": 6}))
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
    tiny_wav2vec2_dir: Path, tmp_path: Path
) -> None:
    data = make_keywords(tmp_path / "data")
    recipe = parse_recipe(classifier(tiny_wav2vec2_dir))
    for text, said in (("poison", r"val\.csv"), ("file,class\ndataset/down/1_a.flac,down\n", "label 'down'")):
        (data / "val.csv").write_text(text)
        with pytest.raises(BadDataset, match=said):
            run(recipe, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_clips_that_cannot_be_used_are_left_out_and_classes_without_any_are_named(
    tiny_wav2vec2_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, out = make_table(tmp_path / "data"), tmp_path / "out"
    for clip in ("high-0", "high-4", "low-5"):  # of training, selection and report
        write_clip(data / f"audio/{clip}.wav", 300, seconds=0.02)
    tables = classifier(tiny_wav2vec2_dir, data={"kind": "csv"}, optimiser={"epochs": 1, "batch": 6})
    assert run(parse_recipe(tables), data, out).skipped == 3
    assert "no readable clip of high is left in the selection part" in caplog.text
    card = (out / "README.md").read_text()
    assert "3 clips were left out" in card
    assert "No readable clip of the report part is of low." in card
    assert "1 chosen of 1" in card
    assert "part. Selection figures are" not in card
    assert "Selection figures are of the chosen epoch on it." in card  # nothing was calibrated on one clip


def test_no_file_where_a_recipe_says_is_told_before_reading(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    tables = classifier(tiny_wav2vec2_dir, data={"kind": "csv", "tables": {"file": "wavs/{file}"}})
    with pytest.raises(BadDataset, match=r"none of the training clips exists, .*wavs/audio.*data\.tables\.file says"):
        run(parse_recipe(tables), make_table(tmp_path / "data"), tmp_path / "out")


def test_several_labels_a_clip(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    data, out = make_fsd50k(tmp_path / "data"), tmp_path / "out"
    layout = read_recipe(find_recipe("fsd50k-ast")).data.model_dump(exclude_unset=True)
    tables = classifier(tiny_wav2vec2_dir, data=layout, input={"window_frames": 60})
    with pytest.raises(BadRecipe, match="use binary_cross_entropy"):
        run(parse_recipe(tables), data, out)
    tables |= {
        "loss": {"kind": "binary_cross_entropy"},
        "optimiser": {"epochs": 7, "batch": 6, "lr": 1e-2},
        "augment": {},
    }
    result = run(parse_recipe(tables), data, out, workers=1)
    assert result.manifest.activation == "sigmoid"
    assert losses(result)[-1] < 0.9 * losses(result)[0]


def test_full_fine_tuning_leaves_a_backbone_and_a_head_for_it(tiny_ast_dir: Path, tmp_path: Path) -> None:
    data, out = make_esc(tmp_path / "data", clips=2), tmp_path / "out"
    tables = classifier(
        tiny_ast_dir,
        method="full",
        data=ESC,
        input={"window_frames": 64, "mean": -7.0, "std": 4.0},
        optimiser={"epochs": 4, "batch": 6, "lr": 1e-3},
    )
    result = run(parse_recipe(tables), data, out)
    assert losses(result)[-1] < losses(result)[0]
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
    tiny_wav2vec2_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = parse_recipe(classifier(tiny_wav2vec2_dir, optimiser={"epochs": 1, "batch": 6}))
    result = train(recipe, make_keywords(tmp_path / "data"), tmp_path / "out", dtype="float32", report=False)
    line = f"ipet: {result.parameters['trainable']:,} trainable parameters (prompt 576, adapter 2,472, head "
    told = " ".join(capsys.readouterr().out.split())
    assert line in told
    assert f"{result.parameters['trainable']:,} parameters" in (tmp_path / "out" / "README.md").read_text()


def test_faulty_clips_are_left_out_and_counted(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    data = make_keywords(tmp_path / "data")
    (data / "dataset/up/00000000_NO_00.flac").write_bytes(b"broken")
    (data / "dataset/up/00000000_NO_01.flac").unlink()
    recipe = parse_recipe(classifier(tiny_wav2vec2_dir, optimiser={"epochs": 1, "batch": 6}))
    result = run(recipe, data, tmp_path / "out", report=False)
    assert result.skipped == 2
    assert "`00000000_NO_00.flac`" in (tmp_path / "out" / "README.md").read_text()


def test_an_unreadable_class_stops_before_the_first_step(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    data = make_keywords(tmp_path / "data")
    for path in (data / "dataset" / "up").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(BadDataset, match="no readable training clip of up"):
        run(parse_recipe(classifier(tiny_wav2vec2_dir)), data, tmp_path / "out")
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
        ("tiny_wav2vec2_dir", {"data": ESC}, BadDataset, r"esc50\.csv cannot be read"),
        ("tiny_wav2vec2_dir", {"adapter": {"scale": 1e9}}, InvalidBundle, "adapter_scale"),
    ],
)
def test_what_cannot_be_trained_is_said_at_once(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    backbone: str,
    tables: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    recipe = parse_recipe(classifier(request.getfixturevalue(backbone), **tables))
    with pytest.raises(error, match=said):
        run(recipe, make_keywords(tmp_path / "data"), tmp_path / "out")
