"""Every key of a recipe changes what it says: each is set alone, and the weights, the bundle or the epochs differ."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch

from service.registry.bundle import read_bundle
from service.training import outcome
from service.training.loop import train
from service.training.methods import merge
from service.training.recipe import parse_recipe
from service.training.shipped import recipe_keys
from tests.training.miniature import KEYWORDS, make_keywords, write_clip

BASE: dict[str, Any] = {
    "name": "kw",
    "task": "classification",
    "data": KEYWORDS,
    "input": {"window_frames": 40},
    "adapter": {"prompt_length": 4, "bottleneck_dim": 8},
    "optimiser": {"epochs": 2, "batch": 4, "lr": 1e-2},
}
LONG = {"input": {"window_frames": 60}}  # longer than the clips
NOISY = {"augment": {"noise": 1.0}}


class Ran(NamedTuple):
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    card: str
    epochs: list[dict[str, Any]]


Runner = Callable[..., Ran]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_wav2vec2_dir: Path, tiny_ast_dir: Path) -> Runner:
    """Runs a recipe with something laid over it; the same one once."""
    root, done = tmp_path_factory.mktemp("keys"), dict[str, Ran]()
    data = make_keywords(root / "data", speakers=3, takes=1)
    for name in ("noise", "musan/noise", "musan/music", "musan/speech", "rirs"):
        write_clip(root / name / "a.flac", 137, seconds=0.4)

    def run(*over: dict[str, Any]) -> Ran:
        tables = BASE
        for each in over:
            tables = merge(tables, each)
        ast = "mean" in tables["input"]
        tables = {"backbone": str(tiny_ast_dir if ast else tiny_wav2vec2_dir)} | tables
        key = json.dumps(tables)
        if key not in done:
            out = root / f"run-{len(done)}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(outcome, "can_draw", lambda: False)
                train(parse_recipe(tables), data, out, dtype="float32", progress=False, report=False)
            files = read_bundle(out)
            epochs = [json.loads(line) for line in (out / "epochs.jsonl").read_text().splitlines()]
            tensors = safetensors.torch.load(files.weights)
            done[key] = Ran(json.loads(files.config), tensors, (files.card or b"").decode(), epochs)
        return done[key]

    return run


def nested(key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


def same(one: Ran, other: Ran, tolerance: float = 0.0) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        tensor.shape == other.tensors[name].shape and bool((tensor - other.tensors[name]).abs().max() <= tolerance)
        for name, tensor in one.tensors.items()
    )


AST = {"input": {"window_frames": 64, "mean": -7.0, "std": 4.0}}
WEIGHTS: dict[str, tuple[Any, dict[str, Any]]] = {  # a value, and what else both runs have
    "seed": (1, {}),
    "backbone_dropouts": (True, {}),
    "refit": (True, {"data": {"held_out": 2}}),
    "folds": (2, {}),
    "adapter.scale": (0.5, {}),
    "adapter.residual": (True, {}),
    "adapter.dropout": (0.5, {}),
    "adapter.head_start": ("discriminants", {}),
    "input.window_frames": (30, {}),
    "input.mean": (-3.0, AST),
    "input.std": (2.0, AST),
    "input.short": ("zeros", LONG),
    "input.normalize": (True, {}),
    "optimiser.batch": (3, {}),
    "optimiser.balanced": (True, {}),
    "optimiser.lr": (1e-3, {}),
    "optimiser.warm_up": (1.5, {}),
    "optimiser.schedule": ("cosine", {}),
    "optimiser.betas": ((0.5, 0.9), {}),
    "optimiser.weight_decay": (0.5, {}),
    "optimiser.gradient_norm": (1e-9, {}),
    "loss.kind": ("binary_cross_entropy", {}),
    "loss.label_smoothing": (0.3, {}),
    "augment.piece": (0.1, {}),
    "augment.shift": (0.2, LONG),
    "augment.speed": (0.3, {}),
    "augment.gain": (10.0, {}),
    "augment.tilt": (0.9, {}),
    "augment.telephone": (1.0, {}),
    "augment.room": (1.0, {}),
    "augment.codec": (1.0, {}),
    "augment.noise": (1.0, {}),
    "augment.noise_snr": ((-5.0, -4.0), NOISY),
    "augment.noise_files": (("../noise/*",), NOISY),
    "augment.mixup": (1.0, {}),
    "augment.musan": ("../musan", {}),
    "augment.rirs": ("../rirs", {}),
    "augment.views": (1, {}),
    "augment.time_mask": (30, AST),
    "augment.frequency_mask": (100, AST),
    "augment.input_noise": (True, AST),
    "augment.mask_time_prob": (0.5, {}),
    "augment.mask_time_length": (2, {"augment": {"mask_time_prob": 0.5}}),
}
# A value, and what the bundle's configuration then says under a key.
BUNDLE: dict[str, tuple[Any, dict[str, Any], str, Any]] = {
    "events.window_frames": (20, {}, "events", {"window_frames": 20}),
    "augment.background": (0.5, {}, "labels", ["up", "zero", "zoom in", "background"]),
    "name": ("other", {}, "name", "other"),
    "description": ("Words.", {}, "description", "Words."),
    "license": ("mit", {}, "license", "mit"),
    "adapter.prompt_length": (2, {}, "prompt_length", 2),
    "adapter.bottleneck_dim": (4, {}, "bottleneck_dim", 4),
    "adapter.layer_aggregation": (True, {}, "layer_aggregation", True),
    "adapter.prefix_length": (3, {}, "prefix_length", 3),
    "adapter.input_prompt": (4, AST, "input_prompt", 4),
    "adapter.ia3": ({"output": ["k"], "input": ["fc2"]}, {}, "ia3", {"output": ["k"], "input": ["fc2"]}),
    "adapter.bias": (["v"], {}, "bias", ["v"]),
    "adapter.head": ("pooled-projector", {}, "head", "pooled-projector"),
}
ELSEWHERE = {
    "task": "test_recipe.py",
    "backbone": "test_loop.py",
    "adapter.lora": "test_fit.py",
    "adapter.embedding_dim": "test_loop.py",
    "loss.margin": "test_losses.py",
    "loss.scale": "test_losses.py",
    "reject": "test_evaluate.py",
    "input.aggregate": "test_evaluate.py",
}


@pytest.mark.parametrize("key", WEIGHTS)
def test_weights_differ(key: str, ran: Runner) -> None:
    value, base = WEIGHTS[key]
    assert not same(ran(base), ran(base, nested(key, value)))


@pytest.mark.parametrize("key", BUNDLE)
def test_the_bundle_differs(key: str, ran: Runner) -> None:
    value, base, told, expected = BUNDLE[key]
    assert ran(base).config.get(told) != expected
    assert ran(base, nested(key, value)).config[told] == expected


def test_what_is_trained(ran: Runner) -> None:
    assert ran({"method": "linear"}).config["prompt_length"] == 0
    assert {tensor.dtype for tensor in ran({"dtype": "float16"}).tensors.values()} == {torch.float16}
    assert "- Mine, CC0" in ran({"sources": ["Mine, CC0"]}).card


def test_windows_of_the_server(ran: Runner) -> None:
    assert ran({"input": {"windows": 2}}).config["input"]["windows"] == 2
    hop = ran({"input": {"windows": "all", "hop_frames": 20}}).config["input"]
    assert (hop["windows"], hop["hop_frames"]) == (None, 20)


def test_epochs_and_looks(ran: Runner) -> None:
    base = ran()
    assert [each["epoch"] for each in base.epochs] == [1, 2]
    assert len(ran({"optimiser": {"epochs": 3}}).epochs) == 3
    looks = ran({"optimiser": {"epochs": 5, "judge_every": 2}}).epochs
    assert [each["epoch"] for each in looks if each["figure"] is not None] == [2, 4, 5]
    still = {"optimiser": {"epochs": 9, "lr": 1e-12, "weight_decay": 0.0}}  # every look is as good as the first
    assert len(ran(still).epochs) == 9
    worse = {"optimiser": {"epochs": 9, "lr": 5.0, "patience": 2}}
    ended = ran(worse).epochs
    best = max(ended, key=lambda each: (each["figure"], -each["epoch"]))["epoch"]
    assert best < len(ended) < 9


def test_a_batch_in_pieces_is_the_same_batch(ran: Runner) -> None:
    """But for rounding and dropout's noise."""
    plain = {"adapter": {"dropout": 0.0}, "optimiser": {"lr": 1e-4}}
    whole, pieces = ran(plain), ran(plain, {"optimiser": {"accumulate": 3}})
    assert same(whole, pieces, tolerance=2e-5)
    assert not same(whole, ran(plain, {"optimiser": {"batch": 2}}), tolerance=2e-5)


def test_the_rate_warms_up(ran: Runner) -> None:
    rates = [each["rate"] for each in ran({"optimiser": {"epochs": 4, "warm_up": 3.0}}).epochs]
    assert rates == sorted(rates)
    assert rates[0] < 0.34e-2
    assert rates[-1] == 1e-2


def test_no_key_is_forgotten() -> None:
    told = {".".join(key.split(".")[:2]) for key, _, _ in recipe_keys()}  # of lora and ia3 their sections
    keys = {key for key in told if not key.startswith("data.")}  # which datasets/ has tests of
    here = {"method", "dtype", "sources", "input.windows", "input.hop_frames", "optimiser.epochs"}
    here |= {"optimiser.judge_every", "optimiser.patience", "optimiser.accumulate"}
    assert keys == {*WEIGHTS, *BUNDLE, *ELSEWHERE, *here}
    assert all((Path(__file__).parent / name).is_file() for name in ELSEWHERE.values())
