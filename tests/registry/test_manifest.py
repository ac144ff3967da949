import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InvalidBundle
from service.model.parts.aggregation import LayerAggregation
from service.model.parts.bottleneck import Bottleneck
from service.model.parts.input_prompt import InputPrompt
from service.model.parts.low_rank import LowRank
from service.model.parts.prompt import Prompt
from service.model.spec import ModelType, TaskType
from service.registry.manifest import (
    ManifestLimits,
    build_manifest,
    check_limits,
    is_alias,
    is_name,
    parse_manifest,
)
from tests.registry.bundles import CLASSIFICATION, VERIFICATION, fields


def test_contract_example() -> None:
    manifest = build_manifest(CLASSIFICATION)
    assert manifest.backbone.model_type is ModelType.AST
    spec = manifest.adapter_spec()
    assert (spec.task_type, spec.outputs) == (TaskType.CLASSIFICATION, 2)
    assert spec.find(Prompt) == Prompt(prompt_length=4)
    assert spec.find(Bottleneck) == Bottleneck(bottleneck_dim=8, adapter_scale=0.1, adapter_residual=False)
    window = manifest.input_spec()
    assert (window.window_frames, window.windows, window.hop_frames, window.short) == (512, 1, None, "zeros")
    assert (window.mean, window.std) == (-6.6268077, 5.358466)


def test_verification() -> None:
    manifest = build_manifest(VERIFICATION)
    assert manifest.adapter_spec().outputs == 12
    assert manifest.calibration is not None
    assert (manifest.calibration.slope, manifest.calibration.intercept) == (8.0, -3.0)
    window = manifest.input_spec()
    assert (window.windows, window.hop_frames, window.short) == (None, 150, "repeat")


def test_version_2() -> None:
    spec = build_manifest(fields(format_version=2, **PARTS)).adapter_spec()
    assert spec.sizes == {"prompt_length": 4, "bottleneck_dim": 8, "conv_kernel": 15}
    assert spec.find(InputPrompt) == InputPrompt(input_prompt=8, frames=512)
    assert spec.find(LayerAggregation) is not None
    assert spec.format_version == 2
    assert build_manifest(fields(format_version=2)).adapter_spec() == build_manifest(CLASSIFICATION).adapter_spec()
    assert build_manifest(CLASSIFICATION).adapter_spec().format_version == 1


def test_version_3_holds_any_of_its_parts_alone() -> None:
    bare = {
        key: value for key, value in CLASSIFICATION.items() if not key.startswith(("prompt", "bottleneck", "adapter"))
    }
    lora = {"r": 4, "alpha": 8.0, "rank_pattern": {"1.q": 2}}
    spec = build_manifest(bare | V3 | {"lora": lora, "prefix_length": 3}).adapter_spec()
    assert spec.sizes == {"prefix_length": 3, "lora.r": 4}
    assert spec.find(Prompt) is None
    assert spec.find(LowRank) is not None


@pytest.mark.parametrize("version", [1, 2])
def test_parts_of_version_3_are_unknown_keys_below_it(version: int) -> None:
    later = {"lora": {"r": 4}, "prefix_length": -1, "ia3": 3, "adapter_activation": "gelu", "head": "ast"}
    manifest = build_manifest(fields(format_version=version, **later))
    assert manifest.adapter_spec() == build_manifest(fields(format_version=version)).adapter_spec()
    assert json.loads(manifest.to_bytes())["lora"] == {"r": 4}


def test_fields_of_any_version() -> None:
    manifest = build_manifest(fields(speech={"verify_seconds": 0.5}, reject_below=0.4, input__aggregate="max"))
    assert (manifest.speech_needed.enrol_seconds, manifest.speech_needed.verify_seconds) == (3.0, 0.5)
    assert (manifest.reject_below, manifest.input.aggregate) == (0.4, "max")
    events = {"threshold": {"dog": 0.7}, "merge_gap": 1.5, "later": True}
    assert build_manifest(fields(format_version=3, events=events)).events_asked == {
        "threshold": {"dog": 0.7},
        "merge_gap": 1.5,
    }
    assert build_manifest(CLASSIFICATION).events_asked == {}
    shorter = build_manifest(fields(events={"window_frames": 128}))
    assert (shorter.window_frames, shorter.recording_frames, shorter.events_asked) == (512, 128, {})
    assert shorter.recording_spec().window_frames == 128
    assert build_manifest(fields(events={"window_frames": 900})).recording_frames == 512
    with pytest.raises(InvalidBundle, match=r"events\.window_frames: expected at least 100"):
        check_limits(build_manifest(fields(events={"window_frames": 99})), ManifestLimits(min_window_frames=100))
    normalisation, check = (
        {"type": "as-norm", "top": 50},
        {"adapter": "spoof@2", "reject": {"label": "x", "above": 0.5}},
    )
    judged = build_manifest(fields(VERIFICATION, normalisation=normalisation, checks=[check]))
    assert judged.normalisation is not None
    assert judged.normalisation.top == 50
    assert [(one.adapter, one.reject.label, one.reject.above) for one in judged.checks or ()] == [("spoof@2", "x", 0.5)]
    silent = build_manifest(CLASSIFICATION)
    assert (silent.speech_needed.enrol_seconds, silent.speech_needed.verify_seconds) == (3.0, 1.0)
    assert (silent.reject_below, silent.input.aggregate) == (None, "mean")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("events", {"threshold": 2}), ("events", {"threshold": {"cat": 0.5}}), ("events", {"merge_gap": -1})],
        *[("speech", []), ("speech", {"verify_seconds": -1}), ("reject_below", 2), ("reject_below", "x")],
        *[("normalisation", {"type": "z-norm"}), ("normalisation", {"type": "as-norm", "calibration": {"slope": 1.0}})],
        *[("checks", [{"adapter": "spoof"}]), ("checks", [{"adapter": "A", "reject": {"label": "x", "above": 0.5}}])],
    ],
)
def test_of_the_wrong_form_they_are_ignored_as_older_bundles_may_have_used_them(field: str, value: object) -> None:
    manifest = build_manifest(fields(**{field: value}))
    assert manifest.reject_below is None
    assert manifest.speech_needed.verify_seconds == 1.0
    with pytest.raises(InvalidBundle, match=field):
        build_manifest(fields(format_version=3, **{field: value}))


def test_short_is_taken_when_given() -> None:
    assert build_manifest(fields(input__short="repeat")).input_spec().short == "repeat"
    assert build_manifest(fields(VERIFICATION, input__short="zeros")).input_spec().short == "zeros"


def test_silence_around_a_short_clip_is_a_word_of_version_3() -> None:
    assert build_manifest(fields(format_version=3, input__short="center")).input_spec().short == "center"
    with pytest.raises(InvalidBundle, match=r"input\.short.*needs format_version 3"):
        build_manifest(fields(input__short="center"))


def test_wav2vec2_ignores_normalisation() -> None:
    given_mean = build_manifest(fields(VERIFICATION, input__mean=-6.0, input__std=3.0))
    assert given_mean.input_spec() == build_manifest(VERIFICATION).input_spec()


def test_unknown_keys_and_unset_fields_survive_a_round_trip() -> None:
    original = fields(future={"deep": [1, None, "ü"]}, metrics={"accuracy": 0.9}, input__dither=0)
    assert json.loads(build_manifest(original).to_bytes()) == original


PARTS: dict[str, Any] = {"conv_kernel": 15, "layer_aggregation": True, "input_prompt": 8}
V3 = {"format_version": 3}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"format_version": 4}, "format_version: expected 1, 2 or 3, got 4"),
    ({"format_version": "1"}, "format_version: expected 1, 2 or 3"),
    ({"peft_type": "LORA"}, "peft_type: expected 'IPET', got \"LORA\""),
    ({"name": "Events"}, "name: "),
    ({"name": "../events"}, "name: "),
    ({"name": "events\n"}, "name: "),
    ({"name": "e" * 65}, "name: "),
    ({"name": 7}, "name: expected a valid string, got 7"),
    ({"task_type": "CAUSAL_LM"}, "task_type: expected 'AUDIO_CLASSIFICATION'"),
    ({"backbone": None}, "backbone: "),
    ({"backbone__model_type": "bert"}, "backbone.model_type: "),
    ({"backbone__hidden_size": "16"}, "backbone.hidden_size: expected a valid integer"),
    ({"backbone__hidden_size": 0}, "backbone.hidden_size: expected greater than or equal to 1, got 0"),
    ({"backbone__num_hidden_layers": 2.0}, "backbone.num_hidden_layers: "),
    ({"backbone__fingerprint": "sha256:xyz"}, "backbone.fingerprint: "),
    ({"prompt_length": -1}, "prompt_length: "),
    ({"prompt_length": True}, "prompt_length: "),
    ({"bottleneck_dim": 129}, "bottleneck_dim: expected at most 128 .* got 129"),
    ({"prompt_length": 129}, "prompt_length: expected at most 128 .*--max-prompt-length.* got 129"),
    ({"prompt_length": 10**30}, "prompt_length: "),
    ({"adapter_scale": "0.1"}, "adapter_scale: expected a valid number"),
    ({"adapter_scale": 1e300}, "adapter_scale: "),
    ({"adapter_residual": 0}, "adapter_residual: "),
    ({"labels": None}, "labels: missing; AUDIO_CLASSIFICATION requires it"),
    ({"labels": []}, "labels: expected at least one"),
    ({"labels": "dog"}, "labels: "),
    ({"labels": ["dog", 1]}, "labels.1: "),
    ({"labels": ["dog", ""]}, "labels.1: "),
    ({"labels": ["dog", " "]}, "labels.1: "),
    ({"labels": ["dog", "ra\nin"]}, "labels.1: "),
    ({"labels": ["dog", "rain", "dog"]}, 'labels.2: "dog" is also label 0'),
    ({"labels": ["x" * 257]}, "labels.0: "),
    ({"labels": [str(i) for i in range(10_001)]}, "labels: "),
    ({"activation": None}, "activation: missing"),
    ({"activation": "relu"}, "activation: expected 'softmax' or 'sigmoid'"),
    ({"calibration": {}}, "calibration.temperature: missing"),
    ({"calibration": {"temperature": 0}}, "calibration.temperature: "),
    ({"calibration": {"slope": 1.0, "intercept": 0.0}}, "calibration.temperature: missing"),
    ({"input__sampling_rate": 8000}, "input.sampling_rate: expected 16000, got 8000"),
    ({"input__window_frames": 2}, "input.window_frames: "),
    ({"input__window_frames": 30_001}, "input.window_frames: "),
    ({"input__windows": 0}, "input.windows: "),
    ({"input__hop_frames": 0}, "input.hop_frames: "),
    ({"input__mean": None}, "input.mean: missing"),
    ({"input__std": 0}, "input.std: "),
    ({"input__std": -1.0}, "input.std: "),
    ({"input__short": "mirror"}, "input.short: expected 'zeros', 'repeat' or 'center'"),
    ({"metrics": []}, "metrics: "),
    ({"conv_kernel": 3}, "conv_kernel: needs format_version 2, got format_version 1"),
    ({"layer_aggregation": True}, "layer_aggregation: needs format_version 2"),
    ({"input_prompt": 8}, "input_prompt: needs format_version 2"),
    ({"format_version": 2, "conv_kernel": 4}, "conv_kernel: expected an odd number of frames, or 0 for none, got 4"),
    ({"format_version": 2, "conv_kernel": 3, "bottleneck_dim": 0}, "conv_kernel: 3 needs a bottleneck"),
    ({"format_version": 2, "conv_kernel": 33}, "conv_kernel: expected at most 31, got 33"),
    ({"format_version": 2, "conv_kernel": None}, "conv_kernel: "),
    ({"format_version": 2, "layer_aggregation": 1}, "layer_aggregation: expected a valid boolean, got 1"),
    ({"format_version": 2, "input_prompt": 64}, "input_prompt: expected less than or equal to 63, got 64"),
    ({"format_version": 2, "input_prompt": 8, "input__window_frames": 16}, "input_prompt: expected less than half of"),
    ({"license": 3}, "license: "),
    ({"task_type": "FEATURE_EXTRACTION"}, "task_type: FEATURE_EXTRACTION needs format_version 3, got 1"),
    (V3 | {"prefix_length": 129}, "prefix_length: expected at most 128, got 129"),
    (V3 | {"adapter_activation": "tanh"}, "adapter_activation: expected 'relu', 'gelu' or 'silu'"),
    (V3 | {"adapter_place": 1}, "adapter_place: "),
    (V3 | {"adapter_norm": "yes"}, "adapter_norm: expected a valid boolean"),
    (V3 | {"lora": {}}, r"lora\.r: missing"),
    (V3 | {"lora": {"r": 0, "alpha": 1.0}}, r"lora\.r: "),
    (V3 | {"lora": {"r": 129, "alpha": 1.0}}, r"lora\.r: expected at most 128, got 129"),
    (V3 | {"lora": {"r": 4, "alpha": 1.0, "rank_pattern": {"3.v": 500}}}, r"lora\.r: expected at most 128, got 500"),
    (V3 | {"lora": {"r": 4, "alpha": 1.0, "rank_pattern": {"query": 2}}}, r"lora\.rank_pattern: expected keys like q"),
    (V3 | {"lora": {"r": 4, "alpha": 1.0, "alpha_pattern": {"x.q": 2.0}}}, r"lora\.alpha_pattern: expected keys"),
    (V3 | {"lora": {"r": 4, "alpha": 1.0, "targets": ["query"]}}, r"lora\.targets\.0: expected 'q'"),
    (V3 | {"ia3": {}}, "ia3: expected targets under output or input, got none"),
    (V3 | {"ia3": {"output": ["k"], "input": ["k"]}}, "ia3: k is under output and input"),
    (V3 | {"head": "linear"}, "head: expected 'ipet', 'pooled-projector' or 'ast'"),
    (V3 | {"head": "pooled-projector"}, "head: pooled-projector is for backbones with frames"),
]
WRONG_VERIFICATION: list[tuple[dict[str, Any], str]] = [
    ({"embedding_dim": None}, "embedding_dim: missing; SPEAKER_VERIFICATION requires it"),
    ({"embedding_dim": 0}, "embedding_dim: "),
    ({"embedding_dim": 4097}, "embedding_dim: "),
    ({"threshold": None}, "threshold: missing"),
    ({"threshold": 1.01}, "threshold: expected less than or equal to 1, got 1.01"),
    ({"calibration": {"temperature": 2.0}}, "calibration.slope: missing"),
    ({"calibration": {"slope": 1.0}}, "calibration.intercept: missing"),
    ({"format_version": 2, "input_prompt": 8}, "input_prompt: expected 0, as wav2vec2 reads no spectrogram, got 8"),
]


@pytest.mark.parametrize(
    ("base", "changes", "reason"),
    [(CLASSIFICATION, *case) for case in WRONG] + [(VERIFICATION, *case) for case in WRONG_VERIFICATION],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) and len(value) < 3 else "",
)
def test_names_the_wrong_field(base: dict[str, Any], changes: dict[str, Any], reason: str) -> None:
    raw = json.dumps(fields(base, **changes)).encode()
    with pytest.raises(InvalidBundle, match=reason) as caught:
        parse_manifest(raw, ManifestLimits())
    assert caught.value.detail.startswith("adapter_config.json: ")
    assert len(caught.value.detail) < 1_000


@pytest.mark.parametrize("missing", list(CLASSIFICATION))
def test_every_field_of_the_example_is_required(missing: str) -> None:
    incomplete = {key: value for key, value in CLASSIFICATION.items() if key != missing}
    with pytest.raises(InvalidBundle, match=f"{missing}: missing"):
        build_manifest(incomplete)


def test_counts_what_it_does_not_name() -> None:
    with pytest.raises(InvalidBundle, match="and 6 more"):
        build_manifest({})


def test_huge_wrong_lists_stay_cheap() -> None:
    raw = json.dumps(fields(labels=[1] * 300_000)).encode()
    with pytest.raises(InvalidBundle, match=r"labels\.0"):
        parse_manifest(raw)


def test_limits_are_the_servers() -> None:
    manifest = build_manifest(fields(prompt_length=200, bottleneck_dim=0))
    check_limits(manifest, ManifestLimits({"prompt_length": 200, "bottleneck_dim": 0}))
    with pytest.raises(InvalidBundle, match="prompt_length"):
        check_limits(manifest, ManifestLimits())


def test_build_refuses_what_json_cannot_say() -> None:
    with pytest.raises(InvalidBundle, match="cannot be written"):
        build_manifest(fields(adapter_scale=float("nan")))


def test_names_and_aliases() -> None:
    assert all(map(is_name, ("a", "7", "sound-events", "a.b_c-d", "x" * 64)))
    assert not any(map(is_name, ("", "A", "-a", ".a", "a/b", "a@1", "a\n", "ä", "x" * 65)))
    assert is_alias("canary")
    assert is_alias("2b")
    assert not is_alias("2")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.sampled_from(sorted({**CLASSIFICATION, **PARTS})), JSON)
def test_any_value_anywhere_is_taken_or_refused(key: str, value: Any) -> None:
    raw = json.dumps({**CLASSIFICATION, "format_version": 2, key: value}).encode()
    try:
        manifest = parse_manifest(raw, ManifestLimits())
    except InvalidBundle:
        return
    assert parse_manifest(manifest.to_bytes()) == manifest
    manifest.adapter_spec()
    manifest.input_spec()


@settings(deadline=None)
@given(JSON, st.text(min_size=1, max_size=20))
def test_any_extra_key_is_kept(value: Any, key: str) -> None:
    raw = json.dumps({**CLASSIFICATION, "x-" + key: value})
    try:
        encoded = raw.encode()
    except UnicodeEncodeError:
        return
    try:
        manifest = parse_manifest(encoded)
    except InvalidBundle:
        return
    assert json.loads(manifest.to_bytes())["x-" + key] == value


def test_windows_shorter_than_the_backbone_can_take_are_refused() -> None:
    manifest = build_manifest(fields(input__window_frames=15))
    check_limits(manifest, ManifestLimits(min_window_frames=15))
    with pytest.raises(InvalidBundle, match=r"input\.window_frames: expected at least 16"):
        check_limits(manifest, ManifestLimits(min_window_frames=16))
