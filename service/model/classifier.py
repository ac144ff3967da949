"""What surrounds a backbone in a published classifier: its head, its labels, and how its extractor makes inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import ASTFeatureExtractor, AutoConfig, AutoModelForAudioClassification, Wav2Vec2FeatureExtractor

from service.model.checkpoint import Checkpoint
from service.model.spec import ModelType

HEADS = ("classifier.", "projector.", "layer_weights")  # names of a classifier's tensors outside its backbone


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A published model beside its backbone.

    Args:
        head: tensors of its classification head as they are named there; empty where the files have none.
        labels: by class, as its config has them; none where they do not count from 0.
        problem_type: as its config has it.
        sampling_rate: Hz, of what its extractor reads.
        mean, std, frames: of an AST's inputs.
        normalize: whether samples are normalised clip by clip.
        assumed: whether the extractor's configuration is the architecture's default, as the model has none.
    """

    head: Mapping[str, Tensor]
    labels: tuple[str, ...]
    problem_type: str | None
    sampling_rate: int
    weighted_sum: bool
    mean: float
    std: float
    frames: int
    normalize: bool
    assumed: bool


def surroundings_of(name: str, checkpoint: Checkpoint) -> Surroundings:
    """Read what a directory or Hub id holds around its backbone. Raises OSError and ValueError."""
    config: Any = AutoConfig.from_pretrained(name)
    extractor, assumed = _extractor(name, checkpoint.model_type)
    classes = sorted(config.id2label)
    return Surroundings(
        head=_head(name, config),
        labels=tuple(config.id2label[i] for i in classes) if classes == list(range(len(classes))) else (),
        problem_type=config.problem_type,
        sampling_rate=int(extractor.sampling_rate),
        weighted_sum=bool(getattr(config, "use_weighted_layer_sum", False)),
        mean=float(getattr(extractor, "mean", 0.0)),
        std=float(getattr(extractor, "std", 1.0)),
        frames=int(getattr(config, "max_length", None) or 0),
        normalize=bool(extractor.do_normalize),
        assumed=assumed,
    )


def _head(name: str, config: Any) -> dict[str, Tensor]:
    model, info = AutoModelForAudioClassification.from_pretrained(
        name, config=config, dtype=torch.float32, output_loading_info=True, weights_only=True
    )
    state: dict[str, Tensor] = model.state_dict()
    missing = set(info["missing_keys"])
    return {key: tensor for key, tensor in state.items() if key.startswith(HEADS) and key not in missing}


def _extractor(name: str, model_type: ModelType) -> tuple[Any, bool]:
    kind = Wav2Vec2FeatureExtractor if model_type.reads_samples else ASTFeatureExtractor
    try:
        return kind.from_pretrained(name), False
    except OSError:
        return kind(), True
