"""A training recipe: what `ipet train` reads from a TOML file, checked key by key. Knows no audio and no tensors."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from service.model.parts.ia3 import Vectors
from service.model.parts.low_rank import Lora, Target
from service.model.spec import TaskType
from service.training.methods import DEFAULT, METHODS, Method, of_method, unusable
from service.training.sources import KINDS, Section, Source

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
_Section = TypeVar("_Section", bound=Section)

SPEAKER_LOSSES = ("cross_entropy", "am_softmax", "aam_softmax")
CLASS_LOSSES = ("cross_entropy", "binary_cross_entropy")


class BadRecipe(ValueError):
    """A recipe that cannot be used; the message names the file, the key, the value and what would be right."""


class AdapterSection(Section):
    prompt_length: int = Field(default=8, ge=0, le=128)
    bottleneck_dim: int = Field(default=32, ge=0, le=128)
    layer_aggregation: bool = Field(default=False, description="The head reads a weighted sum of all layers' outputs.")
    input_prompt: int = Field(
        default=0, ge=0, le=63, description="Width of a learnt frame around the spectrogram; AST only; 0 for none."
    )
    prefix_length: int = Field(default=0, ge=0, le=128, description="Keys and values learnt before each layer's own.")
    lora: Lora | None = Field(default=None, description="r, alpha, targets, and dora or rslora; with targets.")
    ia3: Vectors | None = Field(default=None, description="output, input: the maps that vectors scale.")
    bias: list[Target] | None = Field(default=None, min_length=1, description="The maps whose biases learn.")
    head: Literal["ipet", "pooled-projector", "ast"] = Field(
        default="ipet", description="Of a classifier; the others are those of Hugging Face's, which PEFT can hold."
    )
    scale: float = 0.1
    residual: bool = False
    dropout: Share = 0.1
    head_start: Literal["random", "discriminants"] = Field(
        default="random", description="Of a verification head; discriminants are those of the bare backbone."
    )
    embedding_dim: int = Field(default=128, ge=1, le=4096, description="Of a voiceprint; verification only.")

    @field_validator("lora")
    @classmethod
    def _check_targets(cls, lora: Lora | None) -> Lora | None:
        if lora is not None and lora.targets is None:
            raise ValueError("lora.targets: missing; it says which maps learn, as in ['q', 'v']")
        return lora


class Input(Section):
    """How clips become windows, in training (one random window) and in serving."""

    window_frames: int = Field(ge=3, le=30_000)
    windows: int | None = Field(default=1, ge=1, description='Evenly spaced; "all" for one every hop_frames.')
    hop_frames: int | None = Field(default=None, ge=1)
    mean: float | None = Field(default=None, description="Of the filter bank; AST only.")
    std: float | None = Field(default=None, gt=0, description="Of the filter bank; AST only.")
    short: Literal["zeros", "repeat"] | None = None

    @field_validator("windows", mode="before")
    @classmethod
    def _read_all(cls, value: object) -> object:
        return None if value == "all" else value


class Optimiser(Section):
    """Adam with the paper's defaults: `lr(e) = lr * decay ^ clip(e - decay_after, 0, decay_epochs)`, e from 1."""

    epochs: int = Field(default=30, ge=1)
    batch: int = Field(default=32, ge=2)
    lr: Positive = 1e-3
    schedule: Literal["paper", "cosine"] = "paper"
    decay: Annotated[float, Field(gt=0, le=1)] = 0.85
    decay_after: int = Field(default=5, ge=0)
    decay_epochs: int = Field(default=21, ge=0)
    betas: tuple[Share, Share] = (0.95, 0.999)
    weight_decay: float = Field(default=5e-7, ge=0)
    judge_every: int = Field(default=1, ge=1, description="Epochs from one look at the selection part to the next.")
    gradient_norm: Positive | None = Field(default=None, description="Gradients are scaled down to this norm.")


class Loss(Section):
    kind: Literal["cross_entropy", "binary_cross_entropy", "am_softmax", "aam_softmax"] = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    margin: float = Field(default=0.2, ge=0, le=1, description="am_softmax and aam_softmax.")
    scale: Positive = Field(default=30.0, description="am_softmax and aam_softmax.")


class CalibrationSection(Section):
    """What is chosen on the selection part beside the epoch."""

    false_accept_rate: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Verification: the threshold keeps to it; without, it is that of the EER."
    )


class Augmentation(Section):
    """Each is off at its default. Chances are per clip; ratios and levels are in decibels."""

    crop: bool = Field(default=True, description="Random window of clips longer than it; else the beginning.")
    shift: float = Field(default=0.0, ge=0, description="Largest shift in time of short clips, seconds.")
    speed: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    gain: float = Field(default=0.0, ge=0)
    tilt: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Largest |a| of y[t] = x[t] + a x[t-1].")
    telephone: Share = Field(default=0.0, description="Chance of a clip to be cut off at 4 kHz, its noise with it.")
    room: Share = Field(default=0.0, description="Chance of echoes, of a room that dies away in 0.1 to 0.7 s.")
    codec: Share = Field(default=0.0, description="Chance of a lossy codec, Opus or MP3 at a low rate.")
    noise: Share = Field(default=0.0, description="Chance of added noise.")
    noise_snr: tuple[float, float] = (5.0, 25.0)
    noise_files: tuple[str, ...] = Field(
        default=(), description="Patterns under the data folder; coloured noise beside."
    )
    mixup: Share = Field(default=0.0, description="Chance of mixing with another clip, Beta(10, 10), mean removed.")
    musan: str | None = Field(
        default=None, description="MUSAN's folder (noise/, music/, speech/), seen from the data folder."
    )
    rirs: str | None = Field(default=None, description="Folder of room impulse responses, seen from the data folder.")
    corruption: Share = Field(default=0.8, description="Chance of a clip to get one of what musan and rirs hold.")
    views: int = Field(
        default=0, ge=0, description="Augmented views of each clip, computed once; 0 for new ones in every epoch."
    )
    time_mask: int = Field(default=0, ge=0, description="SpecAugment, frames; AST only.")
    frequency_mask: int = Field(default=0, ge=0, description="SpecAugment, bins; AST only.")
    input_noise: bool = Field(
        default=False, description="U(0, 1) U(0, 1) / 10 and a roll by -10 to 9 frames; AST only."
    )


class Synthesis(Section):
    """Words said by the synthesisers espeak-ng and flite in many voices, as training clips beside the recordings."""

    clips: int = Field(default=0, ge=0, le=100_000)
    words: dict[str, str] = Field(default_factory=dict, description="What is said, by label.")
    telephone: Share = Field(default=0.0, description="Chance of a clip to be cut off at 4 kHz.")

    @model_validator(mode="after")
    def _check_words(self) -> Self:
        if self.clips and not self.words:
            raise ValueError("synthesis.words says for which labels clips are spoken, and what; it is empty")
        if any(word.startswith("-") or not word.strip() for word in self.words.values()):
            raise ValueError("synthesis.words: a word is not empty and does not begin with -")
        return self


class Recipe(Section):
    """One adapter's training, whole."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    task: Literal["classification", "verification"]
    method: Method = "ipet"
    backbone: str = "embedded"
    seed: int = Field(default=0, ge=0)
    refit: bool = Field(default=False, description="Train again on train and selection parts for the chosen epochs.")
    calibrate: bool = True
    dtype: Literal["float32", "float16"] = Field(default="float32", description="Of the bundle's tensors.")
    description: str | None = None
    license: str | None = None
    sources: tuple[str, ...] = Field(default=(), description="Data sets and licences, for the model card.")
    data: Source
    adapter: AdapterSection = AdapterSection()
    input: Input
    optimiser: Optimiser = Optimiser()
    loss: Loss = Loss()
    augment: Augmentation = Augmentation()
    calibration: CalibrationSection = CalibrationSection()
    synthesis: Synthesis = Synthesis()

    @property
    def task_type(self) -> TaskType:
        return TaskType.VERIFICATION if self.task == "verification" else TaskType.CLASSIFICATION

    @property
    def activation(self) -> Literal["softmax", "sigmoid"]:
        return "sigmoid" if self.loss.kind == "binary_cross_entropy" else "softmax"

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        speakers = self.data.verification
        if speakers != (self.task == "verification"):
            raise ValueError(f"task {self.task!r} does not go with data.kind {self.data.kind!r}")
        allowed = SPEAKER_LOSSES if speakers else CLASS_LOSSES
        if self.loss.kind not in allowed:
            raise ValueError(f"loss.kind {self.loss.kind!r} does not go with {self.task}; use {', '.join(allowed)}")
        if self.calibration.false_accept_rate is not None and not speakers:
            raise ValueError("calibration.false_accept_rate does not go with classification")
        if self.synthesis.clips and speakers:
            raise ValueError("synthesis does not go with verification: a synthesiser's voices are no speakers")
        return self

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        problem = unusable(self.method, self.adapter.model_dump())
        if problem is not None:
            raise ValueError(problem)
        return self


def read_recipe(path: Path, method: str | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        method: instead of the recipe's own.

    Raises:
        BadRecipe: the file cannot be read, is not TOML, or has a wrong or unknown key; all are named.
    """
    return parse_recipe(read_toml(path), str(path), method)


def read_toml(path: Path) -> dict[str, Any]:
    """A recipe's tables as plain values. Raises BadRecipe."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise BadRecipe(f"recipe {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRecipe(f"recipe {path} is not TOML: {error}") from None


def parse_recipe(table: dict[str, Any], where: str = "recipe", method: str | None = None) -> Recipe:
    """Check a recipe given as plain values, with what it says for each method. Raises BadRecipe."""
    overrides = table.get("methods", {})
    if not isinstance(overrides, dict) or not all(isinstance(each, dict) for each in overrides.values()):
        raise BadRecipe(f"{where}: methods: expected tables [methods.<method>]")
    chosen = table.get("method", DEFAULT) if method is None else method
    for name in (chosen, *overrides):
        if name not in METHODS:
            raise BadRecipe(f"{where}: method {name!r} is not known; use {', '.join(METHODS)}")
    # What is said for other methods is checked too, so that a wrong key does not wait until it is used.
    recipes = {name: validate(Recipe, of_method(table, name), where) for name in (*overrides, chosen)}
    return recipes[chosen]


def validate(kind: type[_Section], table: dict[str, Any], where: str) -> _Section:
    """A table as a section. Raises BadRecipe with every key that is wrong, what it got and what would be right."""
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        lines = []
        for details in error.errors(include_url=False):
            # The discriminator's value stands in the location of a data source's keys: leave it out.
            parts = [str(part) for part in details["loc"]]
            if parts[:1] == ["data"] and len(parts) > 1 and parts[1] in KINDS:
                del parts[1]
            key = ".".join(parts)
            if details["type"] == "extra_forbidden":
                lines.append(f"{key}: unknown key")
            elif details["type"] == "missing":
                lines.append(f"{key}: missing")
            else:
                got = "" if isinstance(details["input"], dict) else f", got {details['input']!r}"
                lines.append(f"{key}: {details['msg']}{got}" if key else details["msg"])
        raise BadRecipe(f"{where}: " + "; ".join(lines)) from None
