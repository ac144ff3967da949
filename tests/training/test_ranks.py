"""Several processes: they compute what one would."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from service.registry.bundle import read_bundle
from service.training.loop import train
from service.training.ranks import Ranks
from tests.ports import free_port
from tests.training.miniature import make_keywords, write_toml
from tests.training.test_loop import classifier


def test_alone_everything_is_its_own() -> None:
    ranks = Ranks("cpu")
    assert (ranks.count, ranks.index, ranks.is_main, ranks.device) == (1, 0, True, "cpu")
    assert ranks.share([1, 2, 3]) == [1, 2, 3]
    assert ranks.mean([], 0.5, 3) == 0.5
    assert ranks.agree(7) == 7
    ranks.close()


def test_ranks_share_a_batch_and_weigh_gradients_by_rows() -> None:
    """What a launcher's processes compute, one after the other."""
    gathered: list[torch.Tensor] = []

    def rank(index: int) -> Ranks:
        ranks = Ranks("cpu")
        ranks._accelerator = SimpleNamespace(num_processes=2, process_index=index, reduce=lambda flat, _: add(flat))
        return ranks

    def add(flat: torch.Tensor) -> torch.Tensor:
        gathered.append(flat.clone())
        return torch.stack(gathered).sum(dim=0)

    batch = [1.0, 2.0, 3.0, 4.0, 6.0]
    shares = [rank(index).share(batch) for index in (0, 1)]
    assert sorted(shares[0] + shares[1]) == batch
    assert [len(share) for share in shares] == [3, 2]
    losses = []
    for index in (0, 1):
        parameter = torch.zeros(2, requires_grad=True)
        mine = torch.tensor(shares[index])
        loss = (mine[:, None] * parameter).sum(dim=1).mean() + mine.mean()
        loss.backward()
        losses.append(rank(index).mean([parameter], float(loss.detach()), len(shares[index])))
    assert losses[1] == pytest.approx(3.2)  # of all five, whose shares have means of 10 / 3 and 3
    assert parameter.grad is not None
    assert parameter.grad.tolist() == pytest.approx([3.2, 3.2])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ipet", "full"])
def test_two_processes_train_what_one_trains(tiny_wav2vec2_dir: Path, tmp_path: Path, method: str) -> None:
    """On the CPU through gloo, started as `accelerate launch` would; without dropout, whose noise differs."""
    data = make_keywords(tmp_path / "data", speakers=3, takes=2)
    tables = classifier(
        tiny_wav2vec2_dir,
        method=method,
        refit=True,
        adapter={"prompt_length": 4, "bottleneck_dim": 8, "dropout": 0.0},
        optimiser={"epochs": 2, "batch": 5, "lr": 1e-4},
    )
    recipe = write_toml(tmp_path / "recipe.toml", tables)
    train(recipe, data, tmp_path / "one", device="cpu", dtype="float32", progress=False)
    port = free_port()
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
        told, _ = process.communicate(timeout=280)
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
