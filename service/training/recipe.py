"""A training recipe: what `ipet train` reads from a TOML file, checked key by key."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_serializer, field_validator, model_validator

from service.audio.features import Fill
from service.model.parts.ia3 import Vectors
from service.model.parts.low_rank import Lora, Target
from service.model.spec import TaskType
from service.scoring.score import Aggregate
from service.training.methods import DEFAULT, METHODS, Method, merge, of_method, unusable
from service.training.sources import Section, Source

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
_Section = TypeVar("_Section", bound=Section)

SPEAKER_LOSSES = ("cross_entropy", "am_softmax", "aam_softmax")
CLASS_LOSSES = ("cross_entropy", "binary_cross_entropy")


class BadRecipe(ValueError):
    """A recipe that cannot be used; the message names the file, the key, the value and what would be right."""


class AdapterSection(Section):
    prompt_length: int = Field(default=8, ge=0, le=128, description="Prompt tokens in every layer.")
    bottleneck_dim: int = Field(default=32, ge=0, le=128, description="Width of every layer's bottleneck.")
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
    scale: float = Field(default=0.1, description="What a bottleneck adds is multiplied by it.")
    residual: bool = Field(default=False, description="Bottlenecks add their input too, as wav2vec 2.0's of the paper.")
    dropout: Share = Field(default=0.1, description="Inside bottlenecks, in training.")
    head_start: Literal["random", "discriminants"] = Field(
        default="random", description="Of the head; discriminants are those of the bare backbone, in closed form."
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

    window_frames: int = Field(ge=3, le=30_000, description="Length of a window in frames of 10 ms.")
    windows: int | None = Field(default=1, ge=1, description='Evenly spaced; "all" for one every hop_frames.')
    hop_frames: int | None = Field(default=None, ge=1, description="From window to window, where all are heard.")
    mean: float | None = Field(default=None, description="Of the filter bank; AST only.")
    std: float | None = Field(default=None, gt=0, description="Of the filter bank; AST only.")
    short: Fill | None = Field(
        default=None, description="What fills a clip under one window: itself, zeros behind it, or around it (center)."
    )
    normalize: bool = Field(default=False, description="Each window's samples, as transformers' extractors; not AST.")
    aggregate: Aggregate = Field(default="mean", description="What makes a clip's scores of its windows'.")

    @field_validator("windows", mode="before")
    @classmethod
    def _read_all(cls, value: object) -> object:
        return None if value == "all" else value


class EventsInput(Section):
    window_frames: int | None = Field(
        default=None, ge=3, le=30_000, description="Windows of recordings, shorter than clips'; see augment.piece."
    )


class Optimiser(Section):
    """Adam with the paper's defaults."""

    epochs: int = Field(default=30, ge=1, description="At most.")
    batch: int = Field(default=32, ge=2, description="Examples of a step, over all processes.")
    accumulate: int = Field(default=1, ge=1, description="Pieces that a batch is computed in, one after the other.")
    balanced: bool = Field(default=False, description="Every class is drawn equally often, however many clips it has.")
    lr: Positive = Field(default=1e-3, description="Learning rate.")
    warm_up: float = Field(default=0.0, ge=0, description="Epochs in which the rate rises to it.")
    schedule: Literal["paper", "cosine"] = Field(
        default="paper", description="How the rate falls: lr * 0.85 ^ clip(e - 5, 0, 21)."
    )
    betas: tuple[Share, Share] = Field(default=(0.95, 0.999), description="Adam's.")
    weight_decay: float = Field(default=5e-7, ge=0, description="Adam's.")
    judge_every: int = Field(default=1, ge=1, description="Epochs from one look at the selection part to the next.")
    patience: int | None = Field(
        default=None, ge=1, description="Looks without a better figure after which training ends; none: never."
    )
    gradient_norm: Positive | None = Field(default=None, description="Gradients are scaled down to this norm.")


class Loss(Section):
    kind: Literal["cross_entropy", "binary_cross_entropy", "am_softmax", "aam_softmax"] = Field(
        default="cross_entropy", description="binary_cross_entropy takes every class by itself; the last two speakers."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Share given to all classes.")
    margin: float = Field(default=0.2, ge=0, le=1, description="am_softmax and aam_softmax.")
    scale: Positive = Field(default=30.0, description="am_softmax and aam_softmax.")


class Augmentation(Section):
    """Each is off at its default. Chances are per clip; ratios and levels are in decibels."""

    piece: float = Field(
        default=0.0, ge=0, description="Shortest stretch of a clip, seconds, around what is loud in it; 0 for windows."
    )
    background: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Chance of noise alone, or silence, in place of a clip: makes the class `background`."
    )
    shift: float = Field(default=0.0, ge=0, description="Largest shift in time of short clips, seconds.")
    speed: Annotated[float, Field(ge=0, lt=0.5)] = Field(default=0.0, description="Largest change of speed, a share.")
    gain: float = Field(default=0.0, ge=0, description="Largest change of level, dB.")
    tilt: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Largest |a| of y[t] = x[t] + a x[t-1].")
    telephone: Share = Field(default=0.0, description="Chance of a clip to be cut off at 4 kHz, its noise with it.")
    room: Share = Field(default=0.0, description="Chance of echoes, of a room that dies away in 0.1 to 0.7 s.")
    codec: Share = Field(default=0.0, description="Chance of a lossy codec, Opus or MP3 at a low rate.")
    noise: Share = Field(default=0.0, description="Chance of added noise.")
    noise_snr: tuple[float, float] = Field(default=(5.0, 25.0), description="Lowest and highest ratio of it, dB.")
    noise_files: tuple[str, ...] = Field(
        default=(), description="Patterns under the data folder; coloured noise beside."
    )
    mixup: Share = Field(default=0.0, description="Chance of mixing with another clip, Beta(10, 10), mean removed.")
    musan: str | None = Field(
        default=None, description="MUSAN's folder (noise/, music/, speech/), seen from the data folder; with rirs."
    )
    rirs: str | None = Field(
        default=None, description="Folder of room impulse responses, seen from the data folder; with musan."
    )
    views: int = Field(
        default=0, ge=0, description="Augmented views of each clip, computed once; 0 for new ones in every epoch."
    )
    time_mask: int = Field(default=0, ge=0, description="SpecAugment, frames; AST only.")
    frequency_mask: int = Field(default=0, ge=0, description="SpecAugment, bins; AST only.")
    mask_time_prob: Share = Field(
        default=0.0, description="wav2vec 2.0's own masking: share of frames, in stretches that may overlap; not AST."
    )
    mask_time_length: int = Field(default=10, ge=1, description="Frames of such a stretch.")
    input_noise: bool = Field(
        default=False, description="U(0, 1) U(0, 1) / 10 and a roll by -10 to 9 frames; AST only."
    )


class Recipe(Section):
    """One adapter's training, whole."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="The adapter's, as requests name it.")
    task: Literal["classification", "verification"] = Field(description="Of clips; or whether two are of one speaker.")
    method: Method = Field(default="ipet", description="What is trained beside the head.")
    backbone: str = Field(default="embedded", description="As for `ipet serve`.")
    backbone_dropouts: bool = Field(
        default=False, description="Train with the dropouts and the layerdrop of the backbone's own configuration."
    )
    seed: int = Field(default=0, ge=0, description="Of everything random.")
    refit: bool = Field(
        default=False,
        description="Train again, for the chosen epochs, on half of the selection part too; the other half gives "
        "threshold and calibration.",
    )
    folds: int = Field(
        default=0,
        ge=0,
        description="Of training and selection part together: where the latter has fewer than 30 clips, epoch and "
        "calibration follow from answers to folds that were left out, and then all is trained on. Not of speakers.",
    )
    reject: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Share of right answers to the calibrating clips that may be told as unknown: gives "
        "`reject_below`. 0 for none.",
    )
    dtype: Literal["float32", "float16"] = Field(default="float32", description="Of the bundle's tensors.")
    description: str | None = Field(default=None, description="A sentence for the model card.")
    license: str | None = Field(default=None, description="Of the bundle, for the model card.")
    sources: tuple[str, ...] = Field(default=(), description="Data sets and licences, for the model card.")
    data: Source
    adapter: AdapterSection = AdapterSection()
    input: Input
    events: EventsInput = EventsInput()
    optimiser: Optimiser = Optimiser()
    loss: Loss = Loss()
    augment: Augmentation = Augmentation()

    @field_serializer("data")
    def _told(self, data: Source) -> dict[str, Any]:
        """What the recipe says itself: a column that it names must be there, one that it leaves to us need not."""
        return data.model_dump(mode="json", exclude_unset=True)

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
            raise ValueError(f"task {self.task!r}: data.trials names lists for verification, and for nothing else")
        allowed = SPEAKER_LOSSES if speakers else CLASS_LOSSES
        if self.loss.kind not in allowed:
            raise ValueError(f"loss.kind {self.loss.kind!r} does not go with {self.task}; use {', '.join(allowed)}")
        if self.reject and (speakers or self.activation != "softmax"):
            raise ValueError("reject: goes with classes of which a clip has one, and with no other loss")
        if speakers and self.folds:
            raise ValueError("folds do not go with verification: speakers are held out whole, by data.held_out")
        if self.folds == 1:
            raise ValueError("folds: expected 2 or more, or 0 for none, got 1")
        return self

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        problem = unusable(self.method, self.adapter.model_dump())
        if problem is not None:
            raise ValueError(problem)
        return self


def read_recipe(path: Path, method: str | None = None, changes: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        method: instead of the recipe's own.
        changes: `section.key=value` each, laid over the recipe; values as in TOML, words without quotes too, or null.

    Raises:
        BadRecipe: the file cannot be read, is not TOML, or has a wrong or unknown key; all are named.
    """
    table: dict[str, Any] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise BadRecipe(f"{change!r}: expected key=value, as in optimiser.lr=3e-4")
        parsed: Any
        try:
            parsed = None if value == "null" else tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        for part in reversed(key.strip().split(".")):
            parsed = {part: parsed}
        table = merge(table, parsed)
    return parse_recipe(read_toml(path), str(path), method, table)


def read_toml(path: Path) -> dict[str, Any]:
    """A recipe's tables as plain values. Raises BadRecipe."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise BadRecipe(f"recipe {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRecipe(f"recipe {path} is not TOML: {error}") from None


def parse_recipe(
    table: dict[str, Any], where: str = "recipe", method: str | None = None, changes: Mapping[str, Any] | None = None
) -> Recipe:
    """Check a recipe given as plain values, with what it says for each method. Raises BadRecipe."""
    changes = changes or {}
    table = merge(table, {key: value for key, value in changes.items() if key in ("method", "methods")})
    overrides = table.get("methods", {})
    if not isinstance(overrides, dict) or not all(isinstance(each, dict) for each in overrides.values()):
        raise BadRecipe(f"{where}: methods: expected tables [methods.<method>]")
    chosen = table.get("method", DEFAULT) if method is None else method
    for name in (chosen, *overrides):
        if name not in METHODS:
            raise BadRecipe(f"{where}: method {name!r} is not known; use {', '.join(METHODS)}")
    # What is said for other methods is checked too, so that a wrong key does not wait until it is used.
    names = (*overrides, chosen)
    recipes = {name: validate(Recipe, of_method(table, name, changes), where) for name in names}
    for key, value in changes.get("adapter", {}).items():
        if value and not getattr(recipes[chosen].adapter, key):
            raise BadRecipe(f"{where}: adapter.{key}: method {chosen!r} does not train it")
    return recipes[chosen]


def validate(kind: type[_Section], table: dict[str, Any], where: str) -> _Section:
    """A table as a section. Raises BadRecipe with every key that is wrong, what it got and what would be right."""
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        lines = []
        for details in error.errors(include_url=False):
            key = ".".join(map(str, details["loc"]))
            if details["type"] == "extra_forbidden":
                lines.append(f"{key}: unknown key")
            elif details["type"] == "missing":
                lines.append(f"{key}: missing")
            else:
                got = "" if isinstance(details["input"], dict) else f", got {details['input']!r}"
                lines.append(f"{key}: {details['msg']}{got}" if key else details["msg"])
        raise BadRecipe(f"{where}: " + "; ".join(lines)) from None
