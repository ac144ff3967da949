"""The commands about other libraries' adapters: labels of a file, and what a push has to be told."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, AutoModelForAudioClassification, Wav2Vec2ForSequenceClassification
from typer.testing import CliRunner

from service.cli.main import app
from service.exchange.bundles import import_bundle
from service.exchange.to_peft import export_peft
from service.registry.bundle import read_bundle
from service.registry.manifest import parse_manifest
from tests.api.live import running, settings_for
from tests.exchange.classifiers import adapt, logits, save_classifier
from tests.exchange.test_peft import clip
from tests.exchange.test_refusals import CONFIG, change, pair
from tests.model.reference import relative_error

__all__ = ["AutoConfig", "AutoModelForAudioClassification", "PeftModel", "pair"]  # the last by pytest, others by `eval`


def test_labels(pair: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, saved = pair
    labels = tmp_path / "labels.txt"
    labels.write_bytes(b"\xef\xbb\xbfa\nb\nc\n")
    change(base / "config.json", id2label={str(i): f"LABEL_{i}" for i in range(3)})
    with caplog.at_level(logging.WARNING):
        import_bundle(saved, tmp_path / "out", str(base))
    assert "give their labels by --labels" in caplog.text
    caplog.clear()
    arguments = ["import", str(saved), "--base", str(base), "--labels", str(labels), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert parse_manifest(read_bundle(tmp_path / "out").config).labels == ("a", "b", "c")
    assert "give their labels" not in caplog.text


def test_push_without_a_base(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, saved = pair
    done = CliRunner().invoke(app, ["adapters", "push", str(saved)])
    assert (done.exit_code, "it holds PEFT's LORA: give the model that it was trained on by --base" in done.output) == (
        1,
        True,
    )
    (tmp_path / "theirs").mkdir()
    torch.save({}, tmp_path / "theirs" / "best.pth")
    done = CliRunner().invoke(app, ["adapters", "push", str(tmp_path / "theirs")])
    assert (done.exit_code, "the state dict best.pth" in done.output) == (1, True)
    done = CliRunner().invoke(app, ["adapters", "push", str(saved), "--window-frames", "64"])
    assert (done.exit_code, "give --base too" in done.output) == (1, True)


def test_push_with_a_base(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, saved = pair
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\n")
    with running(settings_for(base, tmp_path / "data")) as live:
        words = ["adapters", "push", str(saved), "--url", live.url, "--base", str(base), "--labels", str(labels)]
        done = CliRunner().invoke(app, [*words, "--window-frames", "64"])
        assert done.exit_code == 0, done.output
        config = httpx.get(f"{live.url}/v1/adapters/saved/versions/1/config").json()
    assert (config["labels"], config["input"]["window_frames"]) == (["a", "b", "c"], 64)


def test_an_export_tells_what_the_extractor_does_otherwise(
    pair: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, saved = pair
    import_bundle(saved, tmp_path / "out", str(base))
    with caplog.at_level(logging.WARNING):
        export_peft(tmp_path / "out", tmp_path / "back", str(base))
        assert "in PEFT's files" not in caplog.text
        change(base / "preprocessor_config.json", do_normalize=False)
        export_peft(tmp_path / "out", tmp_path / "other", str(base))
        assert "input.normalize is True, and False in PEFT's files and the base's" in caplog.text
        read = json.loads((tmp_path / "out" / CONFIG).read_text())["input"] | {"window_frames": 50, "short": "repeat"}
        change(tmp_path / "out" / CONFIG, calibration={"temperature": 3.0}, input=read)
        export_peft(tmp_path / "out", tmp_path / "third", str(base))
    for name in ("calibration is {'temperature': 3.0}", "input.window_frames is 50", "input.short is repeat"):
        assert f"{name}, and " in caplog.text


def test_an_export_keeps_labels_and_the_size_of_the_head(tmp_path: Path) -> None:
    base, saved, out, back = (tmp_path / name for name in ("base", "saved", "out", "back"))
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["projector", "classifier"])
    other = {"id2label": dict(enumerate("abcd")), "classifier_proj_size": 28}
    save_classifier("wav2vec2", base)
    wider = Wav2Vec2ForSequenceClassification.from_pretrained(base, ignore_mismatched_sizes=True, **other)
    adapted = adapt(wider, config, saved)
    import_bundle(saved, out, str(base), labels=list("abcd"))
    change(out / CONFIG, activation="sigmoid")
    done = CliRunner().invoke(app, ["export", str(out), "--base", str(base), "--out", str(back)])
    assert done.exit_code == 0, done.output
    again = import_bundle(back, tmp_path / "again", str(base), name="mine")
    assert (again.labels, again.activation) == (tuple("abcd"), "sigmoid")
    (line,) = (line for line in done.output.splitlines() if line.startswith("PeftModel"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        theirs: Any = eval(line)  # as a user copies it
    said, expected = (logits(one.eval(), base, "wav2vec2", clip()) for one in (theirs, adapted))
    assert relative_error(said, expected) < 1e-5


def test_a_pickled_base_is_told_in_one_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, saved = pair
    (base / "model.safetensors").unlink()
    torch.save({"x": Path("x")}, base / "pytorch_model.bin")
    for name, said in (
        (str(base), "it is a pickle of more than tensors; save it as safetensors"),
        (str(tmp_path / "nowhere"), "there is no such directory"),
    ):
        done = CliRunner().invoke(app, ["import", str(saved), "--base", name, "--out", str(tmp_path / "out")])
        assert (done.exit_code, type(done.exception)) == (1, SystemExit)
        assert said in done.output.replace("\n", " ")
        assert "weights_only" not in done.output
