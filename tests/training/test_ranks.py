"""Several processes: they compute what one would."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from service.registry.bundle import read_bundle
from service.training.loop import train
from service.training.ranks import Ranks
from tests.training.miniature import make_keywords
from tests.training.test_loop import classifier


def test_alone_everything_is_its_own() -> None:
    ranks = Ranks("cpu")
    assert (ranks.count, ranks.index, ranks.is_main, ranks.device) == (1, 0, True, "cpu")
    assert ranks.share([1, 2, 3]) == [1, 2, 3]
    assert ranks.mean([], 0.5, 3) == 0.5
    assert ranks.agree(7) == 7
    ranks.close()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ipet", "full"])
def test_two_processes_train_what_one_trains(
    write_recipe: Callable[..., Path], tiny_wav2vec2_dir: Path, tmp_path: Path, method: str
) -> None:
    """On the CPU through gloo, started as `accelerate launch` would; without dropout, whose noise differs."""
    data = make_keywords(tmp_path / "data", speakers=3, takes=2)
    tables = classifier(
        tiny_wav2vec2_dir,
        method=method,
        refit=True,
        adapter={"prompt_length": 4, "bottleneck_dim": 8, "dropout": 0.0},
        optimiser={"epochs": 2, "batch": 5, "lr": 1e-4},
    )
    recipe = write_recipe(**tables)
    train(recipe, data, tmp_path / "one", device="cpu", dtype="float32", progress=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "service", "train", recipe, "--data", data, "--out", tmp_path / "two"]
    options = ["--device", "cpu", "--dtype", "float32", "--workers", "0"]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    processes = [
        subprocess.Popen(
            [str(word) for word in (*command, *options)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        told, _ = process.communicate(timeout=200)
        assert process.returncode == 0, told
    one, two = (tensors_of(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    import safetensors.torch

    tensors = safetensors.torch.load(read_bundle(directory).weights)
    backbone = directory / "backbone" / "model.safetensors"
    return tensors | (safetensors.torch.load_file(backbone) if backbone.exists() else {})
