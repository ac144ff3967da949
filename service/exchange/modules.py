"""Where other libraries' modules are in our words: a layer and one of its linear maps."""

import re

from service.errors import InvalidBundle
from service.model.spec import ModelType

_KIN = {
    "attention.q_proj": "q",
    "attention.k_proj": "k",
    "attention.v_proj": "v",
    "attention.out_proj": "o",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
}
_AST = {  # as transformers 5 names them
    "attention.q_proj": "q",
    "attention.k_proj": "k",
    "attention.v_proj": "v",
    "attention.o_proj": "o",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
_OLD_AST = {
    "attention.attention.query": "q",
    "attention.attention.key": "k",
    "attention.attention.value": "v",
    "attention.output.dense": "o",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
}
ENCODERS = {  # what a classifier calls its backbone
    ModelType.AST: "audio_spectrogram_transformer",
    ModelType.WAV2VEC2: "wav2vec2",
    ModelType.HUBERT: "hubert",
    ModelType.DATA2VEC: "data2vec_audio",
    ModelType.WAVLM: "wavlm",
}
_CLASSES = {
    ModelType.AST: ("ASTModel", "ASTForAudioClassification"),
    ModelType.WAV2VEC2: ("Wav2Vec2Model", "Wav2Vec2ForSequenceClassification"),
    ModelType.HUBERT: ("HubertModel", "HubertForSequenceClassification"),
    ModelType.DATA2VEC: ("Data2VecAudioModel", "Data2VecAudioForSequenceClassification"),
    ModelType.WAVLM: ("WavLMModel", "WavLMForSequenceClassification"),
}
_LAYER = re.compile(r"(?:(\w+)\.)??(?:encoder\.)?layers?\.(\d+)\.(.+)")


def check_class(name: object, model_type: ModelType) -> None:
    """Raise InvalidBundle unless a class is a model or classifier of the base's own architecture, or is not told."""
    if name is not None and name not in _CLASSES[model_type]:
        raise InvalidBundle(
            f"auto_mapping.base_model_class: the adapter was trained on a {str(name)[:60]}, and the base is "
            f"{model_type}: expected {' or '.join(_CLASSES[model_type])}; name the model it was trained on by --base"
        )


def check_prefix(module: str, model_type: ModelType) -> None:
    """Raise InvalidBundle where a module's name begins as another architecture's do."""
    first = module.partition(".")[0]
    if first in set(ENCODERS.values()) - {ENCODERS[model_type]}:
        raise InvalidBundle(
            f"{module[:100]}: of a {first} model, and the base is {model_type}; name the model it was trained on by "
            "--base"
        )


def target_of(module: str, model_type: ModelType) -> tuple[int, str] | None:
    """Layer and target of a module's name in a classifier or its bare backbone; None for any other module."""
    found = _LAYER.fullmatch(module)
    names = _KIN if model_type.reads_samples else _AST | _OLD_AST
    if found is None or found[3] not in names or found[1] not in (None, ENCODERS[model_type]):
        return None
    return int(found[2]), names[found[3]]


def module_of(layer: int, target: str, model_type: ModelType) -> str:
    """A target's module in a classifier, as transformers names it now."""
    names = _KIN if model_type.reads_samples else _AST
    inner = next(name for name, other in names.items() if other == target)
    return f"{ENCODERS[model_type]}.{'encoder.' if model_type.reads_samples else ''}layers.{layer}.{inner}"
