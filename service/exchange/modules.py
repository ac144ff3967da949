"""Where other libraries' modules are in our words: a layer and one of its linear maps."""

import re

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
_LAYERS = {
    ModelType.AST: "audio_spectrogram_transformer.layers",
    ModelType.WAV2VEC2: "wav2vec2.encoder.layers",
    ModelType.HUBERT: "hubert.encoder.layers",
    ModelType.DATA2VEC: "data2vec_audio.encoder.layers",
    ModelType.WAVLM: "wavlm.encoder.layers",
}
_LAYER = re.compile(r"(?:.+\.)?layers?\.(\d+)\.(.+)")


def target_of(module: str, model_type: ModelType) -> tuple[int, str] | None:
    """Layer and target of a module's name, with or without what comes before it; None for any other module."""
    found = _LAYER.fullmatch(module)
    names = _KIN if model_type.reads_samples else _AST | _OLD_AST
    if found is None or found[2] not in names:
        return None
    return int(found[1]), names[found[2]]


def module_of(layer: int, target: str, model_type: ModelType) -> str:
    """A target's module in a classifier, as transformers names it now."""
    names = _KIN if model_type.reads_samples else _AST
    inner = next(name for name, other in names.items() if other == target)
    return f"{_LAYERS[model_type]}.{layer}.{inner}"
