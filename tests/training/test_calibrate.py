import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from typer.testing import CliRunner

from service.cli import app
from service.model.backbone import Backbone
from service.model.spec import TaskType
from service.registry.bundle import read_bundle, read_weights
from service.registry.manifest import parse_manifest
from service.scoring.calibration import cllr
from service.scoring.score import l2_normalise
from service.training.calibrate import Fit, Trials, _judge_held_out, calibrate
from service.training.inference import open_bundle
from tests.bundles import random_bundle
from tests.synthesis import encode

SPEAKERS = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_ast: Backbone) -> Path:
    """Two clips of each speaker, who is a pitch and a level of noise; a list of trials, a cohort's, and a bundle."""
    root = tmp_path_factory.mktemp("trials")
    rng, time = np.random.default_rng(0), np.arange(8_000) / 16_000
    for speaker in range(SPEAKERS):
        for clip in range(2):
            voice = 0.2 * np.sin(2 * np.pi * (100 + 150 * speaker) * time) + rng.normal(0, 0.02, len(time))
            (root / f"{speaker}-{clip}.wav").write_bytes(encode(voice.astype(np.float32)))
    lines = [f"1 {speaker}-0.wav {speaker}-1.wav" for speaker in range(SPEAKERS)]
    lines += [f"0 {one}-0.wav {other}-1.wav" for one, other in combinations(range(SPEAKERS), 2)]
    (root / "trials.txt").write_text("\n".join(lines))
    (root / "cohort.txt").write_text("\n".join(f"s{speaker} {speaker}-0.wav" for speaker in range(22)))
    files = random_bundle(root, tiny_ast.spec, "voice", task=TaskType.VERIFICATION)
    assert files.config
    return root


def run(made: Path, tiny_ast_dir: Path, out: Path, *words: object) -> Any:
    given = ["calibrate", made / "voice-0", "--trials", made / "trials.txt", "--data", made, "--out", out]
    given += ["--backbone", tiny_ast_dir, "--dtype", "float32", *words]
    return CliRunner().invoke(app, [str(word) for word in given])


def test_a_bundle_is_calibrated(made: Path, tiny_ast: Backbone, tiny_ast_dir: Path, tmp_path: Path) -> None:
    done = run(made, tiny_ast_dir, tmp_path / "out", "--normalise")
    assert done.exit_code == 0, done.stderr
    assert f"of {SPEAKERS} speakers, a cohort of {SPEAKERS}" in done.stdout
    files = read_bundle(tmp_path / "out")
    manifest = parse_manifest(files.config)
    cohort = read_weights(files.weights, manifest, tiny_ast.spec)["cohort.embeddings"]
    assert cohort.shape == (SPEAKERS, 6)
    assert manifest.normalisation is not None
    assert manifest.normalisation.calibration is not None
    assert set(manifest.thresholds or {}) == {"eer", "far_1e-2"}  # 276 trials show no rate of one in a thousand
    report = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert (manifest.metrics or {})["calibration"] == report
    assert (report["trials"], report["speakers"], report["held_out"]) == (300, SPEAKERS, True)
    assert set(report["before"]["thresholds"]) == {"default"}
    assert set(report["after"]["thresholds"]) == {"default", "eer", "far_1e-2"}
    for rates in report["after"]["thresholds"].values():
        for share, low, high in rates.values():
            assert 0 <= low <= share <= high <= 1
            assert high > 0
    assert report["after"]["cllr"] >= report["after"]["min_cllr"] >= 0
    assert (tmp_path / "out" / "det.png").read_bytes()[:4] == b"\x89PNG"
    before = safetensors.torch.load(read_bundle(made / "voice-0").weights)
    after = safetensors.torch.load(files.weights)
    assert all((after[name] == tensor).all() for name, tensor in before.items())


def test_without_a_cohort_thresholds_are_of_cosines(made: Path, tiny_ast_dir: Path, tmp_path: Path) -> None:
    first, lists = tmp_path / "first", (made / "trials.txt", made / "cohort.txt")
    voice, again = (lambda path: open_bundle(path, str(tiny_ast_dir), "cpu", "float32")), tmp_path / "second"
    report = calibrate(voice(made / "voice-0"), lists, made, first, bootstrap=50, normalise=True)
    assert report["cohort"] == 22
    report = calibrate(voice(first), lists, made, again, bootstrap=50, normalise=False)
    assert report["cohort"] is None
    files = read_bundle(tmp_path / "second")
    assert parse_manifest(files.config).normalisation is None
    assert "cohort.embeddings" not in safetensors.torch.load(files.weights)


@pytest.mark.parametrize(
    ("line", "reason"), [("1 missing.wav 0-0.wav", "missing.wav"), ("1 trials.txt 0-0.wav", "trials.txt")]
)
def test_a_clip_that_cannot_be_heard_is_named(
    made: Path, tiny_ast_dir: Path, tmp_path: Path, line: str, reason: str
) -> None:
    (tmp_path / "trials.txt").write_text(f"{line}\n0 0-0.wav 1-0.wav")
    refused = run(made, tiny_ast_dir, tmp_path / "out", "--trials", tmp_path / "trials.txt")
    assert refused.exit_code == 1
    assert reason in refused.stderr
    assert not (tmp_path / "out").exists()


# The law that is known


def trials_of(speakers: int, seed: int) -> Trials:
    """Voices around each speaker's own direction, every pair of clips a trial."""
    rng = np.random.default_rng(seed)
    clips = l2_normalise(np.repeat(rng.normal(size=(speakers, 16)), 3, axis=0) + rng.normal(size=(3 * speakers, 16)))
    pairs = np.array(list(combinations(range(len(clips)), 2)))
    owners = pairs // 3
    return Trials(clips[pairs[:, 0]], clips[pairs[:, 1]], owners[:, 0] == owners[:, 1], owners)


def test_figures_after_are_of_speakers_left_out() -> None:
    trials = trials_of(40, 0)
    judged, is_held_out = _judge_held_out(trials, trials.cosines, ["eer", "far_1e-2"])
    assert is_held_out
    assert judged.ratios is not None
    fit = Fit.of(trials.cosines, trials.targets)
    inside = fit.slope * trials.cosines + fit.intercept
    assert cllr(judged.ratios, trials.targets) > cllr(inside, trials.targets)
    assert np.mean(judged.accepted["far_1e-2"][~trials.targets]) == pytest.approx(0.01, abs=0.006)
    few, is_held_out = _judge_held_out(trials_of(8, 1), trials_of(8, 1).cosines, ["eer"])
    assert not is_held_out
    assert few.ratios is not None


def test_a_trials_own_speakers_do_not_normalise_it() -> None:
    trials = trials_of(30, 2)
    voices = l2_normalise(np.random.default_rng(3).normal(size=(30, 16)))
    left_out = trials.normalised(voices, 300, are_theirs=True)
    one = 17
    others = np.delete(voices, trials.speakers[one], axis=0)
    alone = Trials(*(part[[one]] for part in (trials.left, trials.right, trials.targets, trials.speakers)))
    assert left_out[one] == pytest.approx(alone.normalised(others, 300, are_theirs=False)[0])
    assert left_out[one] != pytest.approx(trials.normalised(voices, 300, are_theirs=False)[one])
