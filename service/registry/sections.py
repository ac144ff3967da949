"""The sections of a manifest, field by field."""

import re
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from service.audio.features import Fill
from service.model.parts.part import problem
from service.model.spec import ModelType

MAX_LABEL_LENGTH = 256  # characters
MAX_CHECKS = 8  # classifiers that hear a voice beside a speaker adapter
MAX_WINDOWS = 10_000
MIN_WINDOW_FRAMES = 3  # 30 ms: the backbones' shortest analysis frame is 25 ms
WHOLE_CLIP_FRAMES = 3_000  # 30 s, the most of a clip that is read whole, unless the manifest says another
MAX_WINDOW_FRAMES = 30_000  # 300 s
STRICT_VERSION = 3  # of the format, from which on every field has to be of the right form
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FINGERPRINT = r"^sha256:[0-9a-f]{64}$"


class Section(BaseModel):
    """Types are exact, numbers finite, unknown keys kept."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)


def _lenient(value: object, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
    """A field that older bundles may have used in their own way: the wrong form is refused from version 3 on only."""
    try:
        return read(value)
    except ValidationError:
        if info.data.get("format_version", STRICT_VERSION) >= STRICT_VERSION:
            raise
        return None


Lenient = WrapValidator(_lenient)
Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_LENGTH)]
ThresholdName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9._-]{0,31}$")]  # as in far_1e-3
Probability = Annotated[float, Field(ge=0, le=1)]
Moderate = Annotated[float, Field(ge=-1e6, le=1e6)]


class BackboneReference(Section):
    """The backbone that the adapter was trained on; `fingerprint` None accepts any of this geometry."""

    model_type: ModelType
    hidden_size: int = Field(ge=1, le=2**16)
    num_hidden_layers: int = Field(ge=1, le=2**10)
    fingerprint: str | None = Field(default=None, pattern=_FINGERPRINT)


class InputSection(Section):
    """How a clip becomes the backbone's input: windows in frames of 10 ms, normalisation for AST."""

    sampling_rate: Literal[16000]
    window_frames: int | None = Field(ge=MIN_WINDOW_FRAMES, le=MAX_WINDOW_FRAMES)
    windows: int | None = Field(default=1, ge=1, le=MAX_WINDOWS)
    hop_frames: int | None = Field(default=None, ge=1, le=MAX_WINDOW_FRAMES)
    mean: Moderate | None = None
    std: float | None = Field(default=None, ge=1e-6, le=1e6)
    short: Fill | None = None
    aggregate: Literal["mean", "max"] = "mean"


class InputWords(Section):
    """What `input` may say from version 3 on; below it these are unknown keys."""

    normalize: bool = False
    max_window_frames: int = Field(default=WHOLE_CLIP_FRAMES, ge=MIN_WINDOW_FRAMES, le=MAX_WINDOW_FRAMES)


class SpeechSection(Section):
    """How long somebody has to speak, seconds."""

    enrol_seconds: float = Field(default=3.0, ge=0, le=3600)
    verify_seconds: float = Field(default=1.0, ge=0, le=3600)


class EventsSection(Section):
    """What makes events of a recording's scores; unless said, the contract's defaults. Times in seconds.

    `window_frames`: windows that are shorter than a clip's, where the adapter was trained for them.
    """

    window_frames: int | None = Field(default=None, ge=MIN_WINDOW_FRAMES, le=MAX_WINDOW_FRAMES)

    threshold: Probability | dict[Label, Probability] = 0.5
    hysteresis: Probability | None = None
    smoothing: float = Field(default=0.0, ge=0, le=3600)
    min_seconds: float | None = Field(default=None, ge=0, le=3600)
    merge_gap: float | None = Field(default=None, ge=0, le=3600)


class Calibration(Section):
    """`temperature` for classification; `slope` and `intercept` for verification."""

    temperature: float | None = Field(default=None, ge=1e-6, le=1e6)
    slope: Moderate | None = None
    intercept: Moderate | None = None


class Normalisation(Section):
    """Scores judged by what others score: adaptive s-norm over the `top` nearest rows of `cohort.embeddings`."""

    type: Literal["as-norm"]
    top: int = Field(default=300, ge=2, le=10_000)
    calibration: Calibration | None = None

    @model_validator(mode="after")
    def _check_calibration(self) -> Self:
        given = self.calibration
        if given is not None and (given.slope is None or given.intercept is None):
            raise problem("normalisation.calibration: expected slope and intercept")
        return self


class Rejection(Section):
    """A label whose score rejects a voice, and above which."""

    label: Label
    above: Probability


class Check(Section):
    """A classifier that hears a voice too, and may reject it."""

    adapter: str = Field(pattern=rf"^{NAME.pattern}(@{NAME.pattern})?$")
    reject: Rejection


Checks = Annotated[tuple[Check, ...], Field(max_length=MAX_CHECKS, strict=False)]
