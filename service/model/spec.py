"""Geometry of backbones and adapters as plain values."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from service.model.parts.part import Part

P = TypeVar("P", bound="Part")

NULL_SLOT = 0  # slot of the null adapter: the bare backbone
EMBEDDED_DIRECTORY = Path(__file__).parent / "embedded"
MEL_BINS = 128  # of the service's filter bank: the height of AST's input


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

    @property
    def location(self) -> str:
        """The directory or Hub id of its files."""
        return str(EMBEDDED_DIRECTORY) if self.name == "embedded" else self.name

    @property
    def feed_forward_size(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Geometry of one adapter: the parts that it holds, its head among them."""

    parts: tuple["Part", ...]

    def find(self, kind: type[P]) -> P | None:
        """The part of this kind; None where the adapter has none."""
        return next((part for part in self.parts if isinstance(part, kind)), None)

    @property
    def task_type(self) -> TaskType:
        task: TaskType = self._head.task_type
        return task

    @property
    def outputs(self) -> int:
        """C classes, or the embedding dimension for speaker verification."""
        outputs: int = self._head.outputs
        return outputs

    @property
    def sizes(self) -> dict[str, int]:
        """What of it a server limits, by the manifest's names."""
        return {name: size for part in self.parts for name, size in part.sizes.items()}

    @property
    def _head(self) -> Any:
        return next(part for part in self.parts if part.counted_as == "head" and hasattr(part, "outputs"))

    @property
    def format_version(self) -> int:
        """The bundle format's oldest version that can hold this adapter."""
        return max((part.format_version for part in self.parts), default=1)


def expected_shapes(
    adapter: AdapterSpec, backbone: BackboneSpec, names: Collection[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every tensor of a bundle's weights file (contract, sections 2 and 5), layer by layer.

    The order is that in which a seed draws their first values.

    Args:
        names: of the tensors that a file has; what a bundle may have and the file begins is expected whole.
    """
    shapes = {name: shape for part in adapter.parts for name, shape in part.shapes(backbone).items()}
    for table in optional_shapes(adapter, backbone) if names else ():
        shapes |= table if any(name in names for name in table) else {}
    return dict(sorted(shapes.items(), key=lambda entry: _position(entry[0])))


def _position(name: str) -> int:
    kind, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if kind == "layers" else -1 if kind == "input" else 2**31


def optional_shapes(adapter: AdapterSpec, backbone: BackboneSpec) -> list[dict[str, tuple[int, ...]]]:
    """Tables of tensors that a bundle may have beside these, of each all or none."""
    return [table for part in adapter.parts for table in part.optional_shapes(backbone)]
