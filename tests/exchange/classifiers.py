"""Small published classifiers of every architecture, as Hugging Face saves them, and what PEFT makes of them."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    Data2VecAudioConfig,
    Data2VecAudioForSequenceClassification,
    HubertForSequenceClassification,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WavLMConfig,
    WavLMForSequenceClassification,
)
from transformers.models.hubert import HubertConfig

LABELS = ("dog", "rain", "wind")
SMALL: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
FRONT: dict[str, Any] = {
    "conv_dim": (16, 16, 32),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (5, 8, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 20,
}
NAMED: dict[str, Any] = {
    "id2label": dict(enumerate(LABELS)),
    "label2id": {label: i for i, label in enumerate(LABELS)},
}
KINDS = ("ast", "wav2vec2", "wav2vec2-stable", "hubert", "data2vec-audio", "wavlm")


def save_classifier(kind: str, path: Path, **options: Any) -> PreTrainedModel:
    """A classifier with random weights, saved with its extractor's configuration; `options` go over its config's."""
    torch.manual_seed(3)
    model = _build(kind, options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.1))
    model.save_pretrained(path)
    extractor: Any = Wav2Vec2FeatureExtractor(do_normalize=True)
    if kind == "ast":
        extractor = ASTFeatureExtractor(max_length=128, mean=-5.0, std=3.0)
    extractor.save_pretrained(path)
    return model.eval()


def _build(kind: str, options: dict[str, Any]) -> PreTrainedModel:
    given: dict[str, Any] = {**SMALL, **NAMED}
    if kind == "ast":
        given |= {"frequency_stride": 16, "time_stride": 10, "max_length": 128}
        return ASTForAudioClassification(ASTConfig(**given | options))
    given |= FRONT | options
    if kind == "hubert":
        return HubertForSequenceClassification(HubertConfig(**given))
    if kind == "data2vec-audio":
        deep = {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 7}
        return Data2VecAudioForSequenceClassification(Data2VecAudioConfig(**given | deep))
    if kind == "wavlm":
        return WavLMForSequenceClassification(WavLMConfig(**given))
    stable = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"} if kind == "wav2vec2-stable" else {}
    return Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**given, **stable))


def adapt(model: PreTrainedModel, config: PeftConfig, path: Path) -> Any:
    """The model with an adapter of random weights, which PEFT saves to `path`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted: Any = get_peft_model(model, config)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            assert "original_module" not in name or not parameter.requires_grad
    adapted.save_pretrained(path)
    return adapted.eval()


def logits(model: Any, base: Path, kind: str, samples: np.ndarray[Any, Any]) -> Tensor:
    """What the libraries themselves say of a clip at 16 kHz."""
    extractor: Any = (ASTFeatureExtractor if kind == "ast" else Wav2Vec2FeatureExtractor).from_pretrained(base)
    inputs = extractor(samples, sampling_rate=16_000, return_tensors="pt")["input_values"]
    with torch.no_grad():
        answer: Tensor = model(inputs).logits
    return answer
