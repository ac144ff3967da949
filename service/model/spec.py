"""Geometry of backbones as plain values, and the words for architectures and tasks."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

NULL_SLOT = 0  # slot of the null adapter: the bare backbone
EMBEDDED_DIRECTORY = Path(__file__).parent / "embedded"
MEL_BINS = 128  # of the service's filter bank: the height of AST's input
TARGETS: Final = ("q", "k", "v", "o", "fc1", "fc2")  # a layer's linear maps that adapters may change


class ModelType(StrEnum):
    """Backbone architectures, named as in the backbone's own config.json."""

    AST = "audio-spectrogram-transformer"
    WAV2VEC2 = "wav2vec2"
    HUBERT = "hubert"
    DATA2VEC = "data2vec-audio"
    WAVLM = "wavlm"

    @property
    def reads_samples(self) -> bool:
        """Whether inputs are samples, not a spectrogram: wav2vec 2.0 and its kin."""
        return self is not ModelType.AST


class TaskType(StrEnum):
    CLASSIFICATION = "AUDIO_CLASSIFICATION"
    VERIFICATION = "SPEAKER_VERIFICATION"
    FEATURES = "FEATURE_EXTRACTION"  # no head: the pooled embedding is the answer


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """What the rest of the service may know of the frozen backbone.

    Args:
        name: directory or Hub id that it was loaded from.
        hidden_size: D.
        embedding_size: E, what heads read: D for AST, 2 D for those on samples (mean and standard deviation).
        parameters: number of frozen parameters.
        fingerprint: `sha256:...` of the tensors and configuration that the forward reads.
        min_window_frames: shortest window that the architecture can take, frames of 10 ms.
        intermediate_size: width inside the feed-forward; 0 for four times D.
        norm_eps: of its layer norms.
        special_tokens: in front of the sequence that layers see, which stand for no time.
        bands: runs of frames behind each other in that sequence, each as long as the window (AST: rows of patches).
    """

    name: str
    model_type: ModelType
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    embedding_size: int
    parameters: int
    fingerprint: str
    min_window_frames: int = 1
    intermediate_size: int = 0
    norm_eps: float = 1e-12
    special_tokens: int = 0
    bands: int = 1

    @property
    def location(self) -> str:
        """The directory or Hub id of its files."""
        return str(EMBEDDED_DIRECTORY) if self.name == "embedded" else self.name

    def target_shape(self, target: str) -> tuple[int, int]:
        """`[out, in]` of the weight of one of `TARGETS`."""
        width, wide = self.hidden_size, self.intermediate_size or 4 * self.hidden_size
        return {"fc1": (wide, width), "fc2": (width, wide)}.get(target, (width, width))
