"""Loading, the fingerprint, and what is refused."""

import gc
import hashlib
import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ASTConfig, ASTForAudioClassification, BertConfig, BertModel, Wav2Vec2Config, Wav2Vec2Model

from service.model.checkpoint import load_checkpoint
from service.model.loading import load_backbone
from service.model.precision import pick_device, pick_dtype, use_true_float32
from tests.backbones import save_tiny_ast, save_tiny_wav2vec2


def test_fingerprint_is_the_documented_hash(tiny_ast_dir: Path) -> None:
    config = json.loads((tiny_ast_dir / "config.json").read_text())
    hasher = hashlib.sha256()
    for name, tensor in sorted(load_file(tiny_ast_dir / "model.safetensors").items()):
        hasher.update(f"{name}\n{list(tensor.shape)}\n".encode() + tensor.float().numpy().tobytes())
    keys = ["frequency_stride", "hidden_act", "layer_norm_eps", "max_length", "num_attention_heads", "num_mel_bins"]
    values = {key: config[key] for key in [*keys, "patch_size", "time_stride"]}
    hasher.update(json.dumps(values, sort_keys=True).encode())
    assert load_checkpoint(str(tiny_ast_dir)).fingerprint() == f"sha256:{hasher.hexdigest()}"


@pytest.mark.parametrize("save", [save_tiny_ast, save_tiny_wav2vec2])
def test_fingerprint_follows_weights_and_not_the_dtype_served(save: object, tmp_path: Path) -> None:
    directory = save(tmp_path / "a")  # type: ignore[operator]
    same = load_backbone(str(directory), "cpu", "float32").spec
    assert load_backbone(str(directory), "cpu", "bfloat16").spec.fingerprint == same.fingerprint
    tensors = load_file(directory / "model.safetensors")
    name = next(name for name in tensors if name.endswith(("layer_norm.bias", "layernorm.bias")))
    tensors[name][0] += 1e-3
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    assert load_backbone(str(directory), "cpu", "float32").spec.fingerprint != same.fingerprint


def test_a_classifier_checkpoint_loads_as_its_backbone(tmp_path: Path) -> None:
    config = ASTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_length=64)
    model = ASTForAudioClassification(config)
    model.save_pretrained(tmp_path / "classifier")
    model.audio_spectrogram_transformer.save_pretrained(tmp_path / "base")
    with_head, bare = (load_checkpoint(str(tmp_path / kind)) for kind in ("classifier", "base"))
    assert with_head.fingerprint() == bare.fingerprint()


def test_missing_tensors_are_refused(tmp_path: Path) -> None:
    directory = save_tiny_ast(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks tensors"):
        load_checkpoint(str(directory))


def test_unsupported_models_are_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(**small, vocab_size=50)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="supported are audio-spectrogram-transformer, wav2vec2, hubert"):
        load_backbone(str(tmp_path / "bert"))
    config = Wav2Vec2Config(**small, conv_dim=(8,) * 7, add_adapter=True, num_conv_pos_embedding_groups=2)
    Wav2Vec2Model(config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="add_adapter"):
        load_backbone(str(tmp_path / "adapter"))
    bins = ASTConfig(**small, num_mel_bins=64, max_length=64)
    ASTForAudioClassification(bins).save_pretrained(tmp_path / "bins")
    with pytest.raises(ValueError, match="64 mel bins"):
        load_backbone(str(tmp_path / "bins"))
    with pytest.raises(OSError, match="no such directory"):
        load_backbone(str(tmp_path / "no-such"))


def test_the_shortest_window_is_one_that_runs(tiny_ast_dir: Path, tiny_wav2vec2_dir: Path) -> None:
    for directory in (tiny_ast_dir, tiny_wav2vec2_dir):
        backbone = load_backbone(str(directory), "cpu", "float32")
        frames = backbone.spec.min_window_frames
        hidden = backbone.embed(torch.randn((1, *backbone.input_shape(frames))))
        assert backbone.pool(hidden).isfinite().all()


def test_tokens_are_counted_without_running_the_front_end(tiny_ast_dir: Path, tiny_wav2vec2_dir: Path) -> None:
    for directory in (tiny_ast_dir, tiny_wav2vec2_dir):
        backbone = load_backbone(str(directory), "cpu", "float32")
        for frames in (backbone.spec.min_window_frames, 96, 128, 301):
            hidden = backbone.embed(torch.zeros((1, *backbone.input_shape(frames))))
            assert backbone.token_count(frames) == hidden.shape[1]


def test_positions_of_many_window_lengths_are_not_all_kept(tiny_ast_dir: Path) -> None:
    backbone = load_backbone(str(tiny_ast_dir), "cpu", "float32")
    made = [weakref.ref(backbone.positions(columns)) for columns in range(20, 120)]  # the checkpoint has 12
    gc.collect()
    assert sum(positions() is not None for positions in made) <= 16


def test_float32_on_cuda_is_true_float32() -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = True
        use_true_float32(torch.device("cuda"), torch.bfloat16)
        assert all(backend.allow_tf32 for backend in backends)
        use_true_float32(torch.device("cuda"), torch.float32)
        assert not any(backend.allow_tf32 for backend in backends)
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def test_precision() -> None:
    cpu = torch.device("cpu")
    assert pick_dtype("float32", cpu) is torch.float32
    assert pick_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    assert pick_device("cpu") == cpu
    if not torch.cuda.is_available():
        assert pick_device("auto") == cpu
        with pytest.raises(ValueError, match="no CUDA device"):
            pick_device("cuda")
