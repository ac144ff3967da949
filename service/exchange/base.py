"""The model that a foreign adapter was trained on: its backbone, and what surrounds it."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig

from service.errors import InvalidBundle
from service.model.checkpoint import Checkpoint, read_config
from service.model.classifier import extractor_of
from service.model.loading import describe, load_backbone_checkpoint
from service.model.spec import BackboneSpec, ModelType

_log = logging.getLogger(__name__)

SAMPLING_RATE = 16_000  # Hz
_ONLY_TASKS = (None, "single_label_classification", "multi_label_classification")


@dataclass(frozen=True, slots=True)
class Base:
    """A published model.

    Args:
        config: of its classifier, as transformers reads it.
        extractor: what makes its inputs of samples; `assumed` where the model says nothing of one.
    """

    name: str
    checkpoint: Checkpoint
    spec: BackboneSpec
    config: Any
    extractor: Any
    assumed: bool

    @classmethod
    def load(cls, name: str) -> "Base":
        """Read a directory or Hub id.

        Raises:
            InvalidBundle: a model whose own forward is not the one served here, by name.
            OSError, ValueError: it cannot be read.
        """
        if name != "embedded":
            _check_config(read_config(name))
        checkpoint = load_backbone_checkpoint(name, with_head=True)
        spec = describe(checkpoint, name)
        extractor, assumed = extractor_of(spec.location, spec.model_type)
        rate = int(extractor.sampling_rate)
        if rate != SAMPLING_RATE:
            raise InvalidBundle(
                f"the base's preprocessor_config.json has sampling_rate {rate}: expected {SAMPLING_RATE}, at which all "
                f"is read here; train on a base of {SAMPLING_RATE} Hz"
            )
        return cls(name, checkpoint, spec, checkpoint.config, extractor, assumed)

    def trained_as(self, source: Path) -> "Base":
        """With labels and problem type of the config.json beside an adapter, if any. Raises OSError and ValueError."""
        if not (source / "config.json").exists():
            return self
        return replace(self, config=AutoConfig.from_pretrained(str(source)))

    @property
    def labels(self) -> tuple[str, ...]:
        """By class; none where they do not count from 0."""
        named: Mapping[int, str] = self.config.id2label
        return tuple(named[i] for i in range(len(named))) if sorted(named) == list(range(len(named))) else ()

    @property
    def model_type(self) -> ModelType:
        return self.spec.model_type

    @property
    def head_names(self) -> dict[str, str]:
        """The tensors of a classifier's head, and ours behind `head.`."""
        if self.model_type.reads_samples:
            modules = {"projector": "projector", "classifier": "linear"}
        else:
            modules = {"classifier.layernorm": "norm", "classifier.dense": "linear"}
        return {f"{theirs}.{end}": f"{ours}.{end}" for theirs, ours in modules.items() for end in ("weight", "bias")}

    def input_fields(self, window_frames: int | None) -> dict[str, Any]:
        """`input` of a manifest: whole clips, unless so many frames are asked for; an AST has its own length."""
        extractor = self.extractor
        fields = {"sampling_rate": SAMPLING_RATE, "windows": 1, "window_frames": window_frames, "short": "zeros"}
        if self.model_type.reads_samples:
            return fields | {"normalize": bool(extractor.do_normalize)}
        mean, std = (extractor.mean, extractor.std) if extractor.do_normalize else (0.0, 0.5)
        frames = window_frames or int(self.checkpoint.config.max_length)
        return fields | {"window_frames": frames, "mean": float(mean), "std": float(std)}


def _check_config(config: Any) -> None:
    """Raise InvalidBundle where a model's own forward is another than ours, before its weights are read."""
    if getattr(config, "quantization_config", None) is not None:
        raise InvalidBundle("the base has a quantization_config; name the model it was quantised from by --base")
    if getattr(config, "adapter_attn_dim", None) is not None:
        raise InvalidBundle(
            f"the base has adapter_attn_dim {config.adapter_attn_dim}: adapter layers of its own (MMS), which are left "
            "out here; train on a base without them"
        )


def task_of(base: Base, classes: int, labels: Iterable[str] | None, head: str = "the head") -> dict[str, Any]:
    """The manifest's fields of a classification: given labels, or the base's own.

    Raises:
        InvalidBundle: labels are not as many as classes, or the classes are of a regression.
    """
    kind, told = base.config.problem_type, tuple(base.labels if labels is None else labels)
    if kind not in _ONLY_TASKS or (classes == 1 and kind is None):
        raise InvalidBundle(
            f"{head} has {classes} outputs and problem_type {kind or 'regression (of one output)'}: only classes are "
            "served, train with single_label_classification or multi_label_classification"
        )
    if len(told) != classes:
        whose = "labels are given" if labels is not None else "labels from class 0 are in its config"
        raise InvalidBundle(f"{head} has {classes} classes, but {len(told)} {whose}; give {classes} labels")
    if labels is None and all(re.fullmatch(r"LABEL_\d+", label) for label in told):
        _log.warning("the base does not name its classes (LABEL_0 ...): give their labels by --labels")
    return {
        "task_type": "AUDIO_CLASSIFICATION",
        "labels": list(told),
        "activation": "sigmoid" if kind == "multi_label_classification" else "softmax",
    }


def head_of(
    base: Base, saved: Mapping[str, Tensor], labels: Sequence[str] | None, *, classifies: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest's fields and the tensors of a classification head; what was not saved is the base's.

    Args:
        classifies: whether a classifier was trained, which has to have a head somewhere.

    Raises:
        InvalidBundle: tensors are missing, or labels are not as many as classes.
    """
    tensors = {**base.checkpoint.head, **saved}
    if not tensors and not classifies and labels is None:
        return {"task_type": "FEATURE_EXTRACTION"}, {}
    names = base.head_names
    missing = sorted(names.keys() - tensors.keys())
    if missing:
        raise InvalidBundle(
            f"the head's {missing[0]} is neither in the adapter nor in the base; train and save it with "
            f"modules_to_save = {sorted({name.partition('.')[0] for name in names})}, or name a base that has it"
        )
    sums_layers = getattr(base.config, "use_weighted_layer_sum", False)
    unknown = sorted(saved.keys() - names.keys() - ({"layer_weights"} if sums_layers else set()))
    if unknown:
        raise InvalidBundle(f"the head has {unknown[0]}, which no head served here has")
    head = {f"head.{ours}": tensors[theirs] for theirs, ours in names.items()}
    if any(tensor.dim() == 0 for tensor in head.values()):
        raise InvalidBundle("the head has a tensor without dimensions")
    fields = task_of(base, len(head["head.linear.weight"]), labels)
    fields["head"] = "pooled-projector" if base.model_type.reads_samples else "ast"
    if base.model_type.reads_samples:
        fields["projector_dim"] = len(head["head.projector.weight"])
    if sums_layers:
        if getattr(base.config, "do_stable_layer_norm", False):
            raise InvalidBundle(
                "use_weighted_layer_sum over pre-norm layers (do_stable_layer_norm) cannot be exact here: their sum is "
                "not normed; train a head on the last layer"
            )
        if "layer_weights" not in tensors:
            raise InvalidBundle("the head's layer_weights is neither in the adapter nor in the base")
        fields["layer_aggregation"] = True
        head["head.layers.weight"] = tensors["layer_weights"]
    return fields, head
