"""What other families cost: `python -m tests.benchmarks.families WHAT [--model ast] [--dtype float32] [--budget 90]`.

WHAT is `mixed` (all families in one batch against IPET alone), `peft` (LoRA, another in each row, beside PEFT's
`adapter_names` on the same weights, with 8 and 32 adapters) or `odd` (one long prompt, or one wide rank, among small
ones). Base-size backbones, 1.28 s; outputs are compared before anything is timed.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import logging

from service.model.adapter import AdapterWeights
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.folding import fold
from service.model.loading import load_backbone
from service.model.spec import ModelType
from tests.backbones import adapter_spec, random_adapter
from tests.benchmarks.geometry import Cell, audio, checkpoint, hugging_face_module, pool
from tests.benchmarks.peers import PeftMixedBatch
from tests.benchmarks.plan import COMPARED
from tests.benchmarks.tenants import show, write_json
from tests.benchmarks.timing import Spread, ratios, take_turns
from tests.model.reference import relative_error

ROWS = 8
RANK = 8
LORA = {"lora": {"r": RANK, "alpha": float(RANK), "targets": ["q", "v"]}}
WIDE = {"lora": {**LORA["lora"], "r": 128}}
FAMILIES: tuple[dict[str, Any], ...] = (
    LORA,
    {"lora": {**LORA["lora"], "dora": True}},
    {"prefix_length": 8},
    {"ia3": {"output": ["k", "v"], "input": ["fc2"]}},
    {},  # a head alone
)
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 3e-2}

Runs = Mapping[str, Callable[[], Tensor]]
Goal = tuple[str, Spread, str]  # what, its ratio, and what it should be
Times = Mapping[str, Sequence[float]]


class Bench:
    """One backbone, and batches of adapters on it."""

    def __init__(self, directory: Path, cell: Cell, dtype: str) -> None:
        self.directory, self.cell, self.dtype = directory, cell, dtype
        self.backbone: Backbone = load_backbone(str(directory), "cpu", dtype, for_inference=True)

    def inputs(self, rows: int) -> Tensor:
        return audio(self.cell, self.backbone.spec, rows)

    def batch(self, adapters: Sequence[AdapterWeights | None], heads: bool = False) -> Callable[[], Tensor]:
        """A forward whose row b has `adapters[b]`; None is the bare backbone.

        Args:
            heads: their answers, not embeddings.
        """
        bank, inputs = Bank(self.backbone, len(adapters)), self.inputs(len(adapters))
        for slot, weights in enumerate(adapters, start=1):
            if weights is not None:
                bank.write(slot, fold(weights, self.backbone))
        slots = [slot if weights is not None else 0 for slot, weights in enumerate(adapters, start=1)]
        forward = self.backbone.answer if heads else self.backbone.forward
        return lambda: forward(inputs, bank, slots)

    def random(self, seed: int, **fields: Any) -> AdapterWeights:
        sizes = {"prompt_length": 0, "bottleneck_dim": 0, **fields}
        return random_adapter(adapter_spec(outputs=50, **sizes), self.backbone.spec, seed)

    def agree(self, what: str, one: Tensor, other: Tensor) -> None:
        error = relative_error(one.float(), other.float())
        assert error < TOLERANCES[self.dtype], f"{what}: outputs differ by {error:.1e}"


def mixed(bench: Bench) -> tuple[Runs, Callable[[Times], list[Goal]]]:
    """All families in one batch against as many IPET adapters of the paper's size."""
    ipet = [random_adapter(bench.cell.adapter, bench.backbone.spec, seed) for seed in range(ROWS)]
    others = [bench.random(seed, **fields) for seed, fields in enumerate(FAMILIES)]
    adapters = [*ipet[:2], *others, bench.random(9, **LORA)]
    runs = {"IPET alone": bench.batch(ipet, heads=True), "all families": bench.batch(adapters, heads=True)}
    bank = Bank(bench.backbone, 1)
    for row in range(ROWS):
        bank.write(1, fold(adapters[row], bench.backbone))
        alone = bench.backbone.answer(bench.inputs(ROWS)[row : row + 1], bank, [1])
        bench.agree(f"row {row}", runs["all families"]()[row : row + 1], alone)
    return runs, lambda times: [("IPET : all families", ratios(times["IPET alone"], times["all families"]), ">= 0.90")]


def peft(bench: Bench) -> tuple[Runs, Callable[[Times], list[Goal]]]:
    """LoRA, another in each row, and each one's own bare forward."""
    kind, runs = bench.cell.model_type, {}
    module = hugging_face_module(bench.directory, bench.cell, torch.device("cpu"), getattr(torch, bench.dtype))
    bare = hugging_face_module(bench.directory, bench.cell, torch.device("cpu"), getattr(torch, bench.dtype))
    theirs = PeftMixedBatch(module, bench.cell, RANK, 4 * ROWS)
    for count in (ROWS, 4 * ROWS):
        spec = bench.random(0, **LORA).spec
        loras = [
            AdapterWeights.from_tensors(spec, bench.random(0, **LORA).tensors | theirs.tensors(task))
            for task in range(count)
        ]
        clips = bench.inputs(count).to(getattr(torch, bench.dtype))
        runs |= {
            f"ours, {count}": bench.batch(loras),
            f"ours bare, {count}": bench.batch([None] * count),
            f"PEFT, {count}": lambda clips=clips, count=count: theirs(clips, list(range(count))),
            f"PEFT bare, {count}": lambda clips=clips: pool(kind, bare(clips).last_hidden_state),
        }
    bench.agree("LoRA beside PEFT", runs[f"ours, {ROWS}"](), runs[f"PEFT, {ROWS}"]())

    def goals(times: Times) -> list[Goal]:
        found = []
        for count in (ROWS, 4 * ROWS):
            above = {
                who: [a - b for a, b in zip(times[f"{who}, {count}"], times[f"{who} bare, {count}"], strict=True)]
                for who in ("ours", "PEFT")
            }
            found += [
                (f"above bare, ours : PEFT, {count} adapters", ratios(above["ours"], above["PEFT"]), "<= 0.33"),
                (
                    f"in all, ours : PEFT, {count} adapters",
                    ratios(times[f"ours, {count}"], times[f"PEFT, {count}"]),
                    "<= 1",
                ),
            ]
        return found

    return runs, goals


def odd(bench: Bench) -> tuple[Runs, Callable[[Times], list[Goal]]]:
    """One adapter that holds much among those that hold little, against these alone."""
    small = [bench.random(seed, prompt_length=4, bottleneck_dim=8) for seed in range(ROWS)]
    loras = [bench.random(seed, **LORA) for seed in range(ROWS)]
    runs = {
        "small prompts": bench.batch(small),
        "one of 128 tokens": bench.batch([*small[:-1], bench.random(9, prompt_length=128, bottleneck_dim=8)]),
        "small ranks": bench.batch(loras),
        "one of rank 128": bench.batch([*loras[:-1], bench.random(9, **WIDE)]),
    }
    pairs = (("small prompts", "one of 128 tokens"), ("small ranks", "one of rank 128"))
    for alone, among in pairs:
        bench.agree(among, runs[among]()[:-1], runs[alone]()[:-1])
    return runs, lambda times: [(f"{a} : {b}", ratios(times[a], times[b]), ">= 0.90") for a, b in pairs]


BENCHES = {"mixed": mixed, "peft": peft, "odd": odd}


def measure(what: str, bench: Bench, budget: float, at_least: int = 3) -> list[Goal]:
    """Time one of the benches, print it and keep it as JSON."""
    runs, goals = BENCHES[what](bench)
    for run in runs.values():
        run()
    times = take_turns(runs, budget, at_least)
    found = goals(times)
    title = f"{bench.cell.name}, {bench.dtype}, {torch.get_num_threads()} threads"
    show(
        title,
        ("batch", "ms"),
        [(name, format(Spread.of([1e3 * t for t in taken]), ".1f")) for name, taken in times.items()],
    )
    show(
        title, ("ratio", "median [quartiles]", "goal"), [(name, str(spread), wanted) for name, spread, wanted in found]
    )
    write_json(f"families-{what}-{bench.cell.model_type.value}", {name: list(taken) for name, taken in times.items()})
    return found


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.families", description="What other families cost."
    )
    parser.add_argument("what", choices=BENCHES)
    parser.add_argument("--model", choices=[kind.value for kind in COMPARED], help="one architecture only")
    parser.add_argument("--dtype", choices=TOLERANCES, default="float32")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of timing for each architecture")
    parser.add_argument("--tiny", action="store_true", help="tiny backbones, one round: a try")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    for kind in COMPARED if options.model is None else [ModelType(options.model)]:
        with checkpoint(kind, options.tiny) as directory:
            bench = Bench(directory, Cell(kind, 1.28), options.dtype)
            measure(options.what, bench, 0.0 if options.tiny else options.budget, 1 if options.tiny else 3)


if __name__ == "__main__":
    main()
