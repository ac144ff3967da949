"""The model that a foreign adapter was trained on: its backbone, and what surrounds it."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import AutoConfig

from service.errors import InvalidBundle
from service.model.checkpoint import Checkpoint
from service.model.classifier import Surroundings, surroundings_of
from service.model.loading import describe, load_backbone_checkpoint
from service.model.spec import BackboneSpec, ModelType

_log = logging.getLogger(__name__)

SAMPLING_RATE = 16_000  # Hz
_ONLY_TASKS = (None, "single_label_classification", "multi_label_classification")


@dataclass(frozen=True, slots=True)
class Base:
    name: str
    checkpoint: Checkpoint
    spec: BackboneSpec
    around: Surroundings

    @classmethod
    def load(cls, name: str) -> "Base":
        """Read a directory or Hub id.

        Raises:
            InvalidBundle: a model whose own forward is not the one served here, by name.
            OSError, ValueError: it cannot be read.
        """
        if name != "embedded":
            _check_config(AutoConfig.from_pretrained(name))
        checkpoint = load_backbone_checkpoint(name)
        spec = describe(checkpoint, name)
        around = surroundings_of(spec.location, checkpoint)
        if around.sampling_rate != SAMPLING_RATE:
            raise InvalidBundle(
                f"the base's preprocessor_config.json has sampling_rate {around.sampling_rate}: expected "
                f"{SAMPLING_RATE}, at which all is read here; train on a base of {SAMPLING_RATE} Hz"
            )
        return cls(name, checkpoint, spec, around)

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
        fields: dict[str, Any] = {"sampling_rate": SAMPLING_RATE, "windows": 1}
        if self.model_type.reads_samples:
            return fields | {"window_frames": window_frames, "normalize": self.around.normalize, "short": "zeros"}
        normalised = {"mean": self.around.mean, "std": self.around.std}
        if not self.around.normalize:
            normalised = {"mean": 0.0, "std": 0.5}
        return fields | {"window_frames": window_frames or self.around.frames, "short": "zeros"} | normalised


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
    kind, told = base.around.problem_type, tuple(base.around.labels if labels is None else labels)
    if kind not in _ONLY_TASKS or (classes == 1 and kind is None):
        raise InvalidBundle(
            f"{head} has {classes} outputs and problem_type {kind or 'regression (of one output)'}: only classes are "
            "served, train with single_label_classification or multi_label_classification"
        )
    if len(told) != classes:
        whose = "labels are given" if labels is not None else "labels from class 0 are in the base's config"
        raise InvalidBundle(f"{head} has {classes} classes, but {len(told)} {whose}; give a file of {classes} lines")
    if labels is None and all(re.fullmatch(r"LABEL_\d+", label) for label in told):
        _log.warning("the base does not name its classes (LABEL_0 ...): give their labels by --labels")
    return {
        "task_type": "AUDIO_CLASSIFICATION",
        "labels": list(told),
        "activation": "sigmoid" if kind == "multi_label_classification" else "softmax",
    }


def head_of(
    base: Base, saved: Mapping[str, Tensor], labels: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest's fields and the tensors of a classification head; what was not saved is the base's.

    Raises:
        InvalidBundle: tensors are missing, or labels are not as many as classes.
    """
    tensors = {**base.around.head, **saved}
    if not tensors:
        return {"task_type": "FEATURE_EXTRACTION"}, {}
    names = base.head_names
    missing = sorted(names.keys() - tensors.keys())
    if missing:
        raise InvalidBundle(
            f"the head's {missing[0]} is neither in the adapter nor in the base; save it with modules_to_save, or name "
            "a base that has it"
        )
    unknown = sorted(tensors.keys() - names.keys() - ({"layer_weights"} if base.around.weighted_sum else set()))
    if unknown:
        raise InvalidBundle(f"the head has {unknown[0]}, which no head served here has")
    head = {f"head.{ours}": tensors[theirs] for theirs, ours in names.items()}
    if any(tensor.dim() == 0 for tensor in head.values()):
        raise InvalidBundle("the head has a tensor without dimensions")
    fields = task_of(base, len(head["head.linear.weight"]), labels)
    fields["head"] = "pooled-projector" if base.model_type.reads_samples else "ast"
    if base.model_type.reads_samples:
        fields["projector_dim"] = len(head["head.projector.weight"])
    if base.around.weighted_sum:
        if getattr(base.checkpoint.config, "do_stable_layer_norm", False):
            raise InvalidBundle(
                "use_weighted_layer_sum over pre-norm layers (do_stable_layer_norm) cannot be exact here: their sum is "
                "not normed; train a head on the last layer"
            )
        if "layer_weights" not in tensors:
            raise InvalidBundle("the head's layer_weights is neither in the adapter nor in the base")
        fields["layer_aggregation"] = True
        head["head.layers.weight"] = tensors["layer_weights"]
    return fields, head
