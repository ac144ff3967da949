"""The commands about other libraries' adapters: labels of a file, and what a push has to be told."""

import logging
from pathlib import Path

import httpx
import pytest
import torch
from typer.testing import CliRunner

from service.cli.main import app
from service.exchange.bundles import import_bundle
from service.registry.bundle import read_bundle
from service.registry.manifest import parse_manifest
from tests.api.live import running, settings_for
from tests.exchange.test_refusals import change, pair

__all__ = ["pair"]


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
