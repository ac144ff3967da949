"""What surrounds a backbone in a published classifier: how its extractor makes inputs, what its classes are called."""

from pathlib import Path
from typing import Any

from service.model.spec import ModelType


def extractor_of(name: str, model_type: ModelType) -> tuple[Any, bool]:
    """What makes the inputs of a directory or Hub id of samples; whether it says nothing of one, so is the default's.

    Raises OSError and ValueError.
    """
    from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor

    kind: Any = Wav2Vec2FeatureExtractor if model_type.reads_samples else ASTFeatureExtractor
    try:
        return kind.from_pretrained(name), False
    except OSError:
        if (Path(name) / "preprocessor_config.json").exists():  # there, and broken
            raise
        return kind(), True


def class_names(model_type: ModelType) -> tuple[str, str]:
    """The classes of an architecture's backbone and of its classifier."""
    from transformers.models.auto import modeling_auto as auto

    return auto.MODEL_MAPPING_NAMES[model_type], auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES[model_type]
