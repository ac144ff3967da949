"""The recipe of a pre-training run, read from TOML and checked key by key. Knows no audio and no tensors."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.audio.features import frame_count

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Geometry(_Section):
    """The shape of the backbone; whoever serves it reads the same from config.json."""

    width: Count = 256
    layers: Count = 3
    heads: Count = 4
    feed_forward: Count = 512
    conv_dim: tuple[int, ...] = (256, 256, 256, 192, 192, 192, 192, 192)
    conv_kernel: tuple[int, ...] = (400, 3, 1, 3, 3, 3, 3, 3)
    conv_stride: tuple[int, ...] = (80, 2, 1, 1, 2, 1, 2, 1)
    dropout: float = Field(default=0.0, ge=0, lt=1, description="In the transformer, while it is pre-trained.")

    def hop(self, layers: int | None = None) -> int:
        """Samples between two frames of the first `layers` convolutions (all by default)."""
        return int(np.prod(self.conv_stride[:layers]))

    def receptive_field(self, layers: int | None = None) -> int:
        """Samples that a frame of the first `layers` convolutions (all by default) sees of the waveform."""
        field, step = 1, 1
        for kernel, stride in zip(self.conv_kernel[:layers], self.conv_stride[:layers], strict=True):
            field += (kernel - 1) * step
            step *= stride
        return field


class ASTGeometry(_Section):
    """The shape of an Audio Spectrogram Transformer over the service's filter bank of 128 bands."""

    width: Count = 192
    layers: Count = 4
    heads: Count = 3
    feed_forward: Count = 512
    patch: Count = Field(default=16, le=128, description="bands, and frames of 10 ms")
    frequency_stride: Count = 16
    time_stride: Count = 8
    max_length: Count = Field(default=512, description="frames; shorter windows get a part of the positions")
    mean: float = Field(default=-6.6, description="of the filter bank; written to preprocessor_config.json")
    std: Positive = Field(default=5.0, description="of the filter bank; inputs are (x - mean) / (2 std)")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="In the transformer, while it is pre-trained.")


class FilterBankStage(_Section):
    """First stage (wav2vec 2.0 alone): the first convolutions learn to compute a log-mel spectrogram."""

    steps: Count = 1500
    rows: Count = 16
    window: Count = Field(default=12_000, description="samples")
    learning_rate: Positive = 2e-3


class Synthesis(_Section):
    """English digits said by speech synthesisers, as one more group of words; 0 clips for none."""

    clips: int = Field(default=0, ge=0)
    utterances: int = Field(default=0, ge=0, description="transcripts of the corpora and rows of digits, said anew")
    telephone: float = Field(default=0.0, ge=0, le=1, description="chance of a clip to be cut off at 4 kHz")


class Sizes(_Section):
    """Second stage: rows of a step for each task, and their windows in samples."""

    words: Count = 16
    word_window: Count = 20_480
    speakers: Count = 5
    events: Count = 3
    sounds: Count = 2
    long_window: Count = 40_000
    utterances: int = Field(default=0, ge=0, description="whole ones, whose phonemes are learnt; wav2vec 2.0 only")
    utterance_window: Count = 80_000


class Weights(_Section):
    """What each loss counts. `middle`: the same losses read off the middle, relative to the top's."""

    words: Weight = 1.0
    speakers: Weight = 0.4
    events: Weight = 0.7
    sounds: Weight = 0.3
    spectrum: Weight = 1.0
    statistics: Weight = 0.0
    phonemes: Weight = 1.0
    imitation: Weight = Field(default=1.0, description="of the teacher, where there is one")
    middle: Weight = 0.5


class TaskStage(_Section):
    """Second stage: every task at once."""

    steps: Count = 5000
    learning_rate: Positive = 1.5e-3
    matrix_rate: Weight = Field(
        default=0.0,
        description="learning rate of the backbone's matrices by Muon; 0: they learn by AdamW like the rest",
    )
    warm_up: Count = 150
    weight_decay: Weight = 0.02
    thaw: float = Field(
        default=0.6, ge=0, le=1, description="share of the steps after which the filter bank learns too"
    )
    filter_bank_rate: Weight = Field(default=0.2, description="learning rate of the filter bank, relative")
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    mixing: float = Field(default=0.5, ge=0, le=1, description="chance that an event is blended with another")
    margin: Weight = 0.15
    margin_steps: Count = 500
    scale: Positive = 20.0
    word_shares: dict[Literal["arabic", "digits", "commands", "wake", "synthesised"], Weight] = Field(
        default={"arabic": 0.6, "digits": 0.22, "commands": 0.12, "wake": 0.06, "synthesised": 0.2},
        description="how often a group of words is drawn from, relative to the others that there are",
    )
    speaker_speeds: tuple[Positive, ...] = Field(
        default=(1.0,), description="a voice played at another speed is taken for another speaker"
    )
    recorded_share: float = Field(
        default=0.5, ge=0, le=1, description="of the utterances whose phonemes are learnt; the others are synthesised"
    )
    word_speed: float = Field(default=0.12, ge=0, lt=0.5, description="largest relative change of a word's speed")
    sizes: Sizes = Sizes()
    weights: Weights = Weights()


class HeldOut(_Section):
    """What is kept out of the training parts to choose a recipe on: counts of speakers, and event folds."""

    keyword_speakers: int = Field(default=0, ge=0)
    digit_speakers: int = Field(default=0, ge=0)
    verification_speakers: int = Field(default=0, ge=0)
    event_folds: tuple[int, ...] = ()


class PretrainRecipe(_Section):
    """Everything that decides a run, but the corpora."""

    seed: int = 1
    threads: int = Field(default=0, ge=0, description="0: one or two, whichever is faster at the time")
    checkpoint_steps: Count = 250
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32", description="of matrix products; auto is what the processor multiplies fastest"
    )
    architecture: Literal["wav2vec2", "ast"] = "wav2vec2"
    geometry: Geometry = Field(default=Geometry(), description="of wav2vec 2.0")
    start: str | None = Field(
        default=None,
        description="a wav2vec 2.0 directory of this geometry, or embedded, to go on from instead of a filter bank",
    )
    ast_geometry: ASTGeometry = ASTGeometry()
    teacher: str | None = Field(
        default=None,
        description="a wav2vec 2.0 directory, or embedded, whose frames and embeddings an AST learns to predict",
    )
    synthesis: Synthesis = Synthesis()
    filter_bank: FilterBankStage = FilterBankStage()
    tasks: TaskStage = TaskStage()
    held_out: HeldOut = HeldOut()

    @model_validator(mode="after")
    def _check_architecture(self) -> Self:
        others = ("geometry", "filter_bank", "start") if self.architecture == "ast" else ("ast_geometry", "teacher")
        if unused := [name for name in others if name in self.model_fields_set]:
            raise ValueError(f"{' and '.join(unused)}: not for architecture {self.architecture!r}; leave it out")
        return self

    @model_validator(mode="after")
    def _check_ast(self) -> Self:
        given, sizes = self.ast_geometry, self.tasks.sizes
        if self.architecture != "ast":
            return self
        if sizes.utterances:
            raise ValueError("tasks.sizes.utterances: an AST's columns are too few for phonemes; leave it out")
        if given.width % given.heads:
            raise ValueError(f"ast_geometry.heads: {given.heads} do not divide a width of {given.width}")
        for name in ("word_window", "long_window"):
            frames = frame_count(getattr(sizes, name))
            if not given.patch <= frames <= given.max_length:
                raise ValueError(
                    f"tasks.sizes.{name}: {frames} frames; ast_geometry wants {given.patch} to {given.max_length}"
                )
        return self


def read_recipe(path: Path) -> PretrainRecipe:
    """Read a recipe.

    Raises:
        pydantic.ValidationError: naming the key, the value it got and what would be right.
        tomllib.TOMLDecodeError: when the file is not TOML.
    """
    return PretrainRecipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
