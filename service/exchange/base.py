"""The model that a foreign adapter was trained on: its backbone, and what surrounds it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from service.errors import InvalidBundle
from service.model.checkpoint import Checkpoint
from service.model.classifier import Surroundings, surroundings_of
from service.model.loading import describe, load_backbone_checkpoint
from service.model.spec import BackboneSpec, ModelType


@dataclass(frozen=True, slots=True)
class Base:
    checkpoint: Checkpoint
    spec: BackboneSpec
    around: Surroundings

    @classmethod
    def load(cls, name: str) -> "Base":
        """Read a directory or Hub id. Raises OSError and ValueError."""
        checkpoint = load_backbone_checkpoint(name)
        spec = describe(checkpoint, name)
        return cls(checkpoint, spec, surroundings_of(spec.location, checkpoint))

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
        fields: dict[str, Any] = {"sampling_rate": 16000, "windows": 1}
        if self.model_type.reads_samples:
            return fields | {"window_frames": window_frames, "normalize": self.around.normalize, "short": "zeros"}
        normalised = {"mean": self.around.mean, "std": self.around.std}
        if not self.around.normalize:
            normalised = {"mean": 0.0, "std": 0.5}
        return fields | {"window_frames": window_frames or self.around.frames, "short": "zeros"} | normalised


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
    unknown = sorted(tensors.keys() - names.keys() - {"layer_weights"})
    if unknown:
        raise InvalidBundle(f"the head has {unknown[0]}, which no head served here has")
    head = {f"head.{ours}": tensors[theirs] for theirs, ours in names.items()}
    classes, told = len(head["head.linear.weight"]), tuple(labels or base.around.labels)
    if len(told) != classes:
        whose = "labels are given" if labels else "labels are in the base's config"
        raise InvalidBundle(f"the head has {classes} classes, but {len(told)} {whose}; give a file of {classes} lines")
    fields: dict[str, Any] = {
        "task_type": "AUDIO_CLASSIFICATION",
        "labels": list(told),
        "activation": "sigmoid" if base.around.multi_label else "softmax",
        "head": "pooled-projector" if base.model_type.reads_samples else "ast",
    }
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
