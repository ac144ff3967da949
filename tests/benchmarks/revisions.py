"""This tree's forward beside an earlier revision's: `python -m tests.benchmarks.revisions 8dc3152 [--dtype bfloat16]`.

Each tree runs in a process of its own, on the same weights; they take turns (theirs, ours, ours, theirs), and their
outputs are compared. Times are of one batch of base size and 1.28 s: plain IPET, another adapter in each row, and bare.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.geometry import checkpoint
from tests.benchmarks.plan import COMPARED

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4
BATCHES = ("IPET", "bare")

# Runs in either tree, so it knows what has moved since.
WORKER = """
import inspect, sys, time
import torch
from service.model import adapter
from service.model.bank import Bank
from service.model.folding import fold
from service.model.loading import load_backbone
from service.model.spec import ModelType
from tests import backbones
from tests.benchmarks.geometry import Cell, audio

kind, dtype, path, rows = ModelType(sys.argv[1]), sys.argv[2], sys.argv[3], 8
cell, backbone = Cell(kind, 1.28), load_backbone(path, "cpu", dtype, for_inference=True)
has_sizes = "prompt_length" in inspect.signature(Bank).parameters
bank = Bank(backbone, rows, *((cell.adapter.prompt_length, cell.adapter.bottleneck_dim) if has_sizes else ()))
make = getattr(backbones, "random_adapter", None) or adapter.random_adapter
for row in range(rows):
    bank.write(row + 1, fold(make(cell.adapter, backbone.spec, row), backbone))
inputs, slots = audio(cell, backbone.spec, rows), {"IPET": list(range(1, rows + 1)), "bare": [0] * rows}
with torch.inference_mode():
    for line in sys.stdin:
        started = time.perf_counter()
        output = backbone.forward(inputs, bank, slots[line.strip()])
        print(time.perf_counter() - started, float(output.double().abs().mean()), flush=True)
"""


class Tree:
    """The forward of one tree, in its own process."""

    def __init__(self, root: Path, kind: str, dtype: str, weights: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, kind, dtype, str(weights)],
            cwd=root,
            env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, batch: str) -> tuple[float, float]:
        """Seconds of one forward, and the mean size of what it answers."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{batch}\n")
        self._process.stdin.flush()
        seconds, size = self._process.stdout.readline().split()
        return float(seconds), float(size)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A directory with the tree of a revision."""
    with tempfile.TemporaryDirectory() as directory:
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", directory], input=archive, check=True)
        yield Path(directory)


def compare(earlier: Path, kind: str, dtype: str, weights: Path, seconds: float) -> None:
    """Prints the ratio of times, ours to theirs, for each kind of batch."""
    trees = {"theirs": Tree(earlier, kind, dtype, weights), "ours": Tree(ROOT, kind, dtype, weights)}
    for batch in BATCHES:
        sizes = [tree.run(batch)[1] for tree in trees.values()]
        assert np.allclose(sizes[0], sizes[1], rtol=TOLERANCE), f"{batch}: the answers differ: {sizes}"
        ratios, end = [], time.monotonic() + seconds
        while time.monotonic() < end or len(ratios) < 3:
            first, ours, again, last = (trees[one].run(batch)[0] for one in ("theirs", "ours", "ours", "theirs"))
            ratios.append((ours + again) / (first + last))
        low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        print(f"{kind:28} {dtype:9} {batch:5} {median:.3f} ({low:.3f} to {high:.3f}), {len(ratios)} rounds", flush=True)
    for tree in trees.values():
        tree.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.revisions", description=__doc__)
    parser.add_argument("revision", help="of git")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"])
    parser.add_argument("--budget", type=float, default=40.0, help="seconds of timing for each batch")
    options = parser.parse_args()
    torch.set_num_threads(1)  # what is timed runs in the trees' own processes
    with checked_out(options.revision) as earlier:
        for kind in COMPARED:
            with checkpoint(kind) as weights:
                for dtype in options.dtype or ["float32"]:
                    compare(earlier, kind.value, dtype, weights, options.budget)


if __name__ == "__main__":
    main()
