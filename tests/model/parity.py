"""How far every family is from what it must equal, on every architecture: `python -m tests.model.parity`.

Small backbones of random weights in float32, max |a - b| / max |b|. Bare backbones are compared with transformers' own
forward, families with the contract's formulas written out (tests/model/reference.py), what PEFT saved with PEFT itself.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import logging

from service.exchange.bundles import import_bundle
from service.model.bank import Bank
from service.model.folding import fold
from service.model.loading import load_backbone
from tests.backbones import random_adapter, save_tiny_ast, save_tiny_kin, save_tiny_wav2vec2
from tests.exchange.classifiers import adapt, logits, save_classifier
from tests.exchange.test_peft import clip, configs, served
from tests.model.reference import relative_error
from tests.model.test_backbones import compare
from tests.model.test_families import PARTS, inputs_of, reference, spec_with

BACKBONES: dict[str, Callable[[Path], Path]] = {
    "ast": save_tiny_ast,
    "wav2vec2": save_tiny_wav2vec2,
    **{kind: partial(save_tiny_kin, kind=kind) for kind in ("wav2vec2-stable", "hubert", "data2vec-audio", "wavlm")},
}
FAMILIES = {
    "IPET": {"prompt_length": 4, "bottleneck_dim": 8, "adapter_residual": True},
    "IPET, all layers read": {"prompt_length": 4, "bottleneck_dim": 8, "layer_aggregation": True},
    "LoRA": PARTS["lora-everywhere"],
    "LoRA, rank-stabilised, patterns": PARTS["lora-patterns"],
    "DoRA": PARTS["dora"],
    "IA3": PARTS["ia3"],
    "BitFit": PARTS["bitfit"],
    "prefix": PARTS["prefix"],
    "bottleneck, sequential, silu": PARTS["silu-sequential"],
    "all parts together": PARTS["prompt-all"],
}
SAVED = {
    "LoRA of PEFT": "lora",
    "LoRA of PEFT, patterns, biases": "patterns",
    "DoRA of PEFT": "dora",
    "IA3 of PEFT": "ia3",
}
BARE, MIXED = "bare backbone", "all families in one batch, each alone"


def errors(kind: str, directory: Path) -> Iterator[tuple[str, float]]:
    """By row of the table, on one architecture."""
    backbone = load_backbone(str(BACKBONES[kind](directory / "bare")), "cpu", "float32")
    yield BARE, compare(directory / "bare", backbone, 128)
    inputs, rows = inputs_of(backbone, 2), []
    for seed, (family, fields) in enumerate(FAMILIES.items()):
        rows.append(random_adapter(spec_with(fields), backbone.spec, seed, std=0.2))
        found = backbone.forward(inputs, Bank.of(backbone, [rows[-1]]), [1, 1])
        yield family, relative_error(found, reference(directory / "bare", inputs, rows[-1].to_tensors(), fields))
    bank, slots = Bank(backbone, len(rows)), list(range(1, len(rows) + 1))
    for slot, weights in zip(slots, rows, strict=True):
        bank.write(slot, fold(weights, backbone))
    inputs = inputs_of(backbone, len(rows))
    alone = torch.cat([backbone.answer(inputs[slot - 1 : slot], bank, [slot]) for slot in slots])
    yield MIXED, relative_error(backbone.answer(inputs, bank, slots), alone)
    for row, family in SAVED.items():
        base, saved, out = (directory / f"{family}-{name}" for name in ("base", "saved", "out"))
        model = adapt(save_classifier(kind, base), configs(kind)[family], saved)
        import_bundle(saved, out, str(base), name="mine")
        if kind != "wavlm" or family != "ia3":  # WavLM's attention skips PEFT's vectors, and what is not merged
            theirs = model.merge_and_unload() if kind == "wavlm" else model
            yield row, relative_error(served(out, base, clip())[1], logits(theirs, base, kind, clip()))


@torch.no_grad()
def table() -> str:
    """Markdown: families by architectures."""
    found = {}
    for kind in BACKBONES:
        with tempfile.TemporaryDirectory() as directory:
            found[kind] = dict(errors(kind, Path(directory)))
    lines = [f"| | {' | '.join(BACKBONES)} |", "|---" * (len(BACKBONES) + 1) + "|"]
    for row in (BARE, *FAMILIES, MIXED, *SAVED):
        cells = [f"{found[kind][row]:.0e}" if row in found[kind] else "-" for kind in BACKBONES]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(table())
