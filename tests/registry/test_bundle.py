import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BackboneMismatch, InvalidBundle
from service.model.adapter import AdapterWeights
from service.registry.bundle import (
    BundleFiles,
    check_backbone,
    read_bundle,
    read_weights,
    write_bundle,
)
from service.registry.manifest import build_manifest, parse_manifest
from tests.registry.bundles import AST, FINGERPRINT, VERIFICATION, WAV2VEC2, fields, tensors
from tests.registry.hostile import HEADER, HEADER_END, NAME, WEIGHTS, file, headed

MANIFEST = build_manifest(fields())


def test_digest_is_of_both_digests() -> None:
    pair = hashlib.sha256(b"config").digest() + hashlib.sha256(b"weights").digest()
    assert BundleFiles(b"config", b"weights").digest == "sha256:" + hashlib.sha256(pair).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(4, 8), (0, 8), (4, 0), (0, 0)])
def test_round_trip(tmp_path: Path, dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    manifest = build_manifest(fields(prompt_length=sizes[0], bottleneck_dim=sizes[1]))
    written = {name: tensor.to(dtype) for name, tensor in tensors(manifest).items()}
    files = write_bundle(tmp_path / "out", manifest, written, "# card")
    assert read_bundle(tmp_path / "out") == files
    assert parse_manifest(files.config) == manifest
    for source in (files.weights, tmp_path / "out" / "adapter_model.safetensors"):
        read = read_weights(source, manifest, AST)
        assert read.keys() == written.keys()
        assert all(torch.equal(read[name], written[name]) and read[name].dtype == dtype for name in written)


def test_version_2_round_trip(tmp_path: Path) -> None:
    parts = {"conv_kernel": 5, "layer_aggregation": True, "input_prompt": 8}
    manifest = build_manifest(fields(format_version=2, **parts))
    written = tensors(manifest)
    assert {name: tuple(tensor.shape) for name, tensor in written.items() if name not in tensors(MANIFEST)} == {
        "input.prompt.up": (8, 512),
        "input.prompt.down": (8, 512),
        "input.prompt.left": (112, 8),
        "input.prompt.right": (112, 8),
        **{f"layers.{layer}.adapter.conv.weight": (8, 5) for layer in (0, 1)},
        **{f"layers.{layer}.adapter.conv.bias": (8,) for layer in (0, 1)},
        "head.layers.weight": (3,),
    }
    files = write_bundle(tmp_path, manifest, written)
    assert parse_manifest(files.config) == manifest
    weights = AdapterWeights.from_tensors(manifest.adapter_spec(), read_weights(files.weights, manifest, AST))
    again = weights.to_tensors()
    assert again.keys() == written.keys()
    assert all(torch.equal(again[name], written[name]) for name in written)


@pytest.mark.parametrize("part", ["conv_kernel", "layer_aggregation", "input_prompt"])
def test_tensors_must_be_those_of_the_parts(part: str) -> None:
    parts = {"conv_kernel": 5, "layer_aggregation": True, "input_prompt": 8}
    written = tensors(build_manifest(fields(format_version=2, **parts)))
    less = build_manifest(fields(format_version=2, **{key: value for key, value in parts.items() if key != part}))
    with pytest.raises(InvalidBundle, match=r"unexpected tensors: .*its parts and the backbone"):
        read_weights(safetensors.torch.save(written), less, AST)
    plain = safetensors.torch.save(tensors(MANIFEST))
    with pytest.raises(InvalidBundle, match="missing tensors: "):
        read_weights(plain, build_manifest(fields(format_version=2, **{part: parts[part]})), AST)


def test_verification_head_on_wav2vec2() -> None:
    manifest = build_manifest(VERIFICATION)
    written = tensors(manifest, WAV2VEC2)
    assert written["head.embedding.weight"].shape == (12, 32)
    read_weights(safetensors.torch.save(written), manifest, WAV2VEC2)


def test_writing_again_replaces_the_bundle_and_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("kept")
    write_bundle(tmp_path, MANIFEST, tensors(MANIFEST, seed=1), "# card")
    second = write_bundle(tmp_path, MANIFEST, tensors(MANIFEST, seed=2))
    assert read_bundle(tmp_path) == second
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint", "adapter_config.json", "adapter_model.safetensors"}


def test_a_readme_of_no_bundle_is_left(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    write_bundle(tmp_path, MANIFEST, tensors(MANIFEST, seed=1))
    assert (tmp_path / "README.md").read_text() == "mine"


def test_interrupted_writing_leaves_no_half_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path, MANIFEST, tensors(MANIFEST, seed=1))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_bundle(tmp_path, MANIFEST, tensors(MANIFEST, seed=2))
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_model.safetensors"}
    with pytest.raises(InvalidBundle, match=r"adapter_config\.json is missing"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_must_be_finite(bad: float) -> None:
    written = tensors(MANIFEST)
    written["layers.1.adapter.up.bias"][3] = bad
    with pytest.raises(InvalidBundle, match=r"layers\.1\.adapter\.up\.bias: holds NaN or infinite"):
        read_weights(safetensors.torch.save(written), MANIFEST, AST)


def test_integer_tensors_are_refused() -> None:
    written = {name: tensor.to(torch.int8) for name, tensor in tensors(MANIFEST).items()}
    with pytest.raises(InvalidBundle, match="expected dtype"):
        read_weights(safetensors.torch.save(written), MANIFEST, AST)


def test_oversized_files_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    with path.open("wb") as file:
        file.truncate(2**31)  # sparse
    with pytest.raises(InvalidBundle, match="not a valid safetensors file"):
        read_weights(path, MANIFEST, AST)


def entry(**changes: object) -> Callable[[], bytes]:
    return lambda: headed(HEADER | {NAME: HEADER[NAME] | changes})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: bytes(7), "not a valid safetensors file"),
        (lambda: b"RIFF" + bytes(100), "claims a header .*is it a safetensors"),
        (lambda: file(b"{}", length=2**20 + 1), "claims a header"),
        (lambda: headed({}, b""), r"missing tensors: .* and \d more"),
        (lambda: headed({key: value for key, value in HEADER.items() if key != NAME}), "not a valid safetensors file"),
        (entry(dtype="I64", shape=[4, 8]), r"layers\.0\.prompt: expected dtype F32, F16, BF16, got"),
        (entry(shape=[16, 4]), r"layers\.0\.prompt: expected shape \[4, 16\], got \[16, 4\]"),
        (entry(shape=[4, 16, *[1] * 3000]), r"layers\.0\.prompt: expected shape|not a valid safetensors file"),
    ],
)
@pytest.mark.parametrize("from_path", [True, False])
def test_what_a_header_says_is_judged_before_the_values(
    tmp_path: Path, make: Callable[[], bytes], reason: str, from_path: bool
) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(make())
    with pytest.raises(InvalidBundle, match=reason) as caught:
        read_weights(path if from_path else make(), MANIFEST, AST)
    assert caught.value.detail.startswith("adapter_model.safetensors")
    assert len(caught.value.detail) < 1_000


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"backbone__model_type": "wav2vec2"}, "backbone.model_type"),
        ({"backbone__hidden_size": 24}, "backbone.hidden_size"),
        ({"backbone__num_hidden_layers": 3}, "backbone.num_hidden_layers"),
        ({"backbone__fingerprint": "sha256:" + "00" * 32}, "backbone.fingerprint"),
    ],
)
def test_another_backbone_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BackboneMismatch, match=field):
        check_backbone(build_manifest(fields(**changes)), AST)


def test_fingerprint_makes_it_verified() -> None:
    assert check_backbone(build_manifest(fields(backbone__fingerprint=FINGERPRINT)), AST)
    assert not check_backbone(MANIFEST, AST)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, HEADER_END + 64), st.integers(0, 255)), max_size=6),
    st.one_of(st.none(), st.integers(0, len(WEIGHTS) - 1)),
    st.binary(max_size=16),
)
def test_mutated_files_are_read_or_refused(changes: list[tuple[int, int]], cut: int | None, tail: bytes) -> None:
    raw = bytearray(WEIGHTS)
    for position, value in changes:
        raw[position] = value
    mutated = bytes(raw[:cut]) + tail
    with suppress(InvalidBundle):
        read_weights(mutated, MANIFEST, AST)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidBundle):
        read_weights(raw, MANIFEST, AST)


def test_lora_of_some_targets_is_whole_or_refused() -> None:
    manifest = build_manifest(fields(format_version=3, lora={"r": 2, "alpha": 4.0}))
    written = tensors(manifest) | {
        "layers.1.lora.q.a": torch.zeros(2, 16),
        "layers.1.lora.q.b": torch.zeros(16, 2),
        "layers.0.bias.fc1": torch.zeros(64),
    }
    assert read_weights(safetensors.torch.save(written), manifest, AST).keys() == written.keys()
    half = {name: tensor for name, tensor in written.items() if not name.endswith("q.b")}
    with pytest.raises(InvalidBundle, match=r"missing tensors: layers\.1\.lora\.q\.b"):
        read_weights(safetensors.torch.save(half), manifest, AST)
    with pytest.raises(InvalidBundle, match=r"layers\.1\.lora\.q\.a: expected shape \[2, 16\]"):
        read_weights(safetensors.torch.save(written | {"layers.1.lora.q.a": torch.zeros(3, 16)}), manifest, AST)
    with pytest.raises(InvalidBundle, match=r"unexpected tensors: layers\.2\.lora\.q\.a"):
        read_weights(safetensors.torch.save(written | {"layers.2.lora.q.a": torch.zeros(2, 16)}), manifest, AST)


def test_a_cohort_is_of_any_number_of_rows_of_length_1(tmp_path: Path) -> None:
    manifest = build_manifest(VERIFICATION | {"normalisation": {"type": "as-norm", "top": 300}})
    given = tensors(manifest, WAV2VEC2)
    width = manifest.embedding_dim or 0

    def read(cohort: torch.Tensor | None) -> dict[str, torch.Tensor]:
        more = {} if cohort is None else {"cohort.embeddings": cohort}
        return read_weights(write_bundle(tmp_path, manifest, given | more).weights, manifest, WAV2VEC2)

    for rows in (2, 77):
        cohort = torch.nn.functional.normalize(torch.randn(rows, width)).to(torch.bfloat16)
        assert torch.equal(read(cohort)["cohort.embeddings"], cohort)
    for wrong in (None, torch.ones(3, width), torch.zeros(3, width), torch.eye(width + 1), torch.ones(width)):
        with pytest.raises(InvalidBundle, match=r"cohort\.embeddings"):
            read(wrong)
