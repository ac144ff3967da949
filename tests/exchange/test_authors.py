"""State dicts in the naming of IPET's authors: their adapters answer as the reference does, others are refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from service.errors import InvalidBundle
from service.exchange.bundles import import_bundle
from service.model.checkpoint import load_checkpoint
from tests.exchange.classifiers import save_classifier
from tests.exchange.test_peft import clip, served
from tests.model.reference import Reference, head, relative_error


def state_of(kind: str, base: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An adapter as the authors name it, and as the contract does."""
    torch.manual_seed(0)
    theirs: dict[str, Tensor] = {}
    ours: dict[str, Tensor] = {}
    width = 48 if kind == "ast" else 96
    for i in range(3):
        prompt, block = (
            (f"embedding_prompt{i}", f"v.blocks.{i}.adaptmlp")
            if kind == "ast"
            else (f"wav2vec2.encoder.layers.{i}.embed_prompt", f"wav2vec2.encoder.layers.{i}.adapter")
        )
        ours[f"layers.{i}.prompt"] = torch.randn(4, 48)
        theirs[prompt] = ours[f"layers.{i}.prompt"][None]
        for part, shape in (("down", (8, 48)), ("up", (48, 8))):
            for end, size in (("weight", shape), ("bias", shape[:1])):
                tensor = ours[f"layers.{i}.adapter.{part}.{end}"] = torch.randn(size) * 0.2
                theirs[f"{block}.{part}_proj.{end}"] = tensor
    for number, name, shapes in ((0, "norm", ((width,), (width,))), (1, "linear", ((3, width), (3,)))):
        for end, shape in zip(("weight", "bias"), shapes, strict=True):
            theirs[f"mlp_head.{number}.{end}"] = ours[f"head.{name}.{end}"] = torch.randn(shape)
    own = load_checkpoint(str(base)).tensors
    if kind == "ast":
        parts = ("query", "key", "value")
        stacked = [own[f"encoder.layer.1.attention.attention.{part}.weight"] for part in parts]
        theirs["v.blocks.1.attn.qkv.weight"] = torch.cat(stacked)
    else:
        name = "encoder.layers.1.attention.q_proj.weight"
        theirs[f"wav2vec2.{name}"] = own[name]
    return theirs, ours


@pytest.mark.parametrize("kind", ["ast", "wav2vec2"])
def test_answers_are_the_papers(kind: str, tmp_path: Path) -> None:
    base, source = tmp_path / "base", tmp_path / "source"
    model = save_classifier(kind, base)
    getattr(model, "audio_spectrogram_transformer" if kind == "ast" else "wav2vec2").save_pretrained(tmp_path / "bare")
    theirs, ours = state_of(kind, base)
    source.mkdir()
    torch.save({f"module.{name}": tensor for name, tensor in theirs.items()}, source / "best.pth")
    manifest = import_bundle(source, tmp_path / "out", str(base))
    _, answer = served(tmp_path / "out", base, clip())
    samples = torch.from_numpy(clip())
    inputs = samples[None]
    if kind == "ast":
        from service.audio.features import FILTER_BANK

        inputs = FILTER_BANK.windows(samples, manifest.input_spec()).inputs
    embeddings = Reference(tmp_path / "bare").embeddings(inputs, ours, 0.1, kind != "ast")
    assert relative_error(answer, head(ours, embeddings)) < 1e-4


def test_what_is_not_theirs_or_of_another_backbone_is_refused(tmp_path: Path) -> None:
    base, source = tmp_path / "base", tmp_path / "source"
    save_classifier("wav2vec2", base)
    theirs, _ = state_of("wav2vec2", base)
    source.mkdir()
    for change, said in (
        ({"wav2vec2.encoder.layers.1.attention.q_proj.weight": torch.zeros(48, 48)}, "another backbone"),
        ({"something.weight": torch.zeros(3)}, "something.weight: neither"),
        ({"mlp_head.1.weight": torch.zeros(5, 96)}, "mlp_head has 5 classes, but 3 labels"),
    ):
        torch.save(theirs | change, source / "best.pth")
        with pytest.raises(InvalidBundle, match=said):
            import_bundle(source, tmp_path / "out", str(base))
        assert not (tmp_path / "out").exists()


class _Runs:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def test_a_pickle_that_runs_does_not(tmp_path: Path) -> None:
    save_classifier("ast", tmp_path / "base")
    (tmp_path / "source").mkdir()
    torch.save({"mlp_head.0.weight": _Runs(tmp_path / "ran")}, tmp_path / "source" / "best.pth")
    with pytest.raises(ValueError, match=r"best\.pth holds no tensors that can be read safely"):
        import_bundle(tmp_path / "source", tmp_path / "out", str(tmp_path / "base"))
    assert not (tmp_path / "ran").exists()
