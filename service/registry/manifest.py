"""The manifest: `adapter_config.json` of a bundle, checked field by field. Knows no tensors and no files."""

import dataclasses
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, Self

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
from pydantic_core import ErrorDetails

from service.audio.features import InputSpec
from service.errors import InvalidBundle
from service.model.parts.every import LIMITS, read_parts
from service.model.parts.part import LATEST_VERSION, problem
from service.model.spec import AdapterSpec, ModelType, TaskType
from service.registry.strict_json import parse_object

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 2**20
MAX_LABELS = 10_000
MAX_LABEL_LENGTH = 256  # characters
MAX_EMBEDDING_DIM = 4096
MAX_WINDOWS = 10_000
MIN_WINDOW_FRAMES = 3  # 30 ms: the backbones' shortest analysis frame is 25 ms
TRIED_FRAMES = 128  # 1.28 s, of an adapter that reads whole clips
WHOLE_CLIP_FRAMES = 3_000  # 30 s, the most of a clip that is read whole, unless the manifest says another
MAX_WINDOW_FRAMES = 30_000  # 300 s
STRICT_VERSION = 3  # of the format, from which on every field has to be of the right form
ADJUSTABLE = ("prompt_length", "bottleneck_dim")  # limits that are settings of the server
_REQUIRED: Mapping[TaskType, tuple[str, ...]] = {
    TaskType.CLASSIFICATION: ("labels", "activation"),
    TaskType.VERIFICATION: ("embedding_dim", "threshold"),
    TaskType.FEATURES: (),
}
_MAX_ERRORS = 5  # named in one message

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FINGERPRINT = r"^sha256:[0-9a-f]{64}$"


def is_name(text: str) -> bool:
    """Whether `text` can name an adapter."""
    return _NAME.fullmatch(text) is not None


def is_alias(text: str) -> bool:
    """Whether `text` can be an alias: as a name, and not all digits, which would be a version."""
    return is_name(text) and not text.isdigit()


@dataclass(frozen=True, slots=True)
class ManifestLimits:
    """Geometry accepted: the largest of each field that has a limit, and the backbone's shortest window."""

    sizes: Mapping[str, int] = dataclasses.field(default_factory=lambda: LIMITS)
    min_window_frames: int = MIN_WINDOW_FRAMES


class _Section(BaseModel):
    """Types are exact, numbers finite, unknown keys kept."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)


class BackboneReference(_Section):
    """The backbone that the adapter was trained on; `fingerprint` None accepts any of this geometry."""

    model_type: ModelType
    hidden_size: int = Field(ge=1, le=2**16)
    num_hidden_layers: int = Field(ge=1, le=2**10)
    fingerprint: str | None = Field(default=None, pattern=_FINGERPRINT)


class InputSection(_Section):
    """How a clip becomes the backbone's input: windows in frames of 10 ms, normalisation for AST."""

    sampling_rate: Literal[16000]
    window_frames: int | None = Field(ge=MIN_WINDOW_FRAMES, le=MAX_WINDOW_FRAMES)
    windows: int | None = Field(default=1, ge=1, le=MAX_WINDOWS)
    hop_frames: int | None = Field(default=None, ge=1, le=MAX_WINDOW_FRAMES)
    mean: float | None = Field(default=None, ge=-1e6, le=1e6)
    std: float | None = Field(default=None, ge=1e-6, le=1e6)
    short: Literal["zeros", "repeat"] | None = None
    aggregate: Literal["mean", "max"] = "mean"


class InputWords(_Section):
    """What `input` may say from version 3 on; below it these are unknown keys."""

    normalize: bool = False
    max_window_frames: int = Field(default=WHOLE_CLIP_FRAMES, ge=MIN_WINDOW_FRAMES, le=MAX_WINDOW_FRAMES)


class SpeechSection(_Section):
    """How long somebody has to speak, seconds."""

    enrol_seconds: float = Field(default=3.0, ge=0, le=3600)
    verify_seconds: float = Field(default=1.0, ge=0, le=3600)


class Calibration(_Section):
    """`temperature` for classification; `slope` and `intercept` for verification."""

    temperature: float | None = Field(default=None, ge=1e-6, le=1e6)
    slope: float | None = Field(default=None, ge=-1e6, le=1e6)
    intercept: float | None = Field(default=None, ge=-1e6, le=1e6)


def _lenient(value: object, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
    """A field that older bundles may have used in their own way: the wrong form is refused from version 3 on only."""
    try:
        return read(value)
    except ValidationError:
        if info.data.get("format_version", STRICT_VERSION) >= STRICT_VERSION:
            raise
        return None


ThresholdName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9._-]{0,31}$")]  # as in far_1e-3
Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_LENGTH)]


class Manifest(_Section):
    """`adapter_config.json`, as the contract's section 2 has it; the parts of the model read their own fields of it."""

    format_version: Literal[1, 2, 3]
    peft_type: Literal["IPET"]
    name: str = Field(pattern=f"^{_NAME.pattern}$")
    task_type: TaskType
    base_model_name_or_path: str = Field(max_length=1024)
    backbone: BackboneReference
    labels: tuple[Label, ...] | None = Field(default=None, max_length=MAX_LABELS, fail_fast=True)
    activation: Literal["softmax", "sigmoid"] | None = None
    embedding_dim: int | None = Field(default=None, ge=1, le=MAX_EMBEDDING_DIM)
    threshold: float | None = Field(default=None, ge=-1, le=1)
    calibration: Calibration | None = None
    input: InputSection
    speech: Annotated[SpeechSection | None, WrapValidator(_lenient)] = None
    reject_below: Annotated[Annotated[float, Field(ge=0, le=1)] | None, WrapValidator(_lenient)] = None
    thresholds: Annotated[
        dict[ThresholdName, Annotated[float, Field(ge=-1e6, le=1e6)]] | None, WrapValidator(_lenient)
    ] = None
    merge: Annotated[Literal["mean", "best"] | None, WrapValidator(_lenient)] = None
    metrics: dict[str, Any] | None = None
    license: str | None = None
    description: str | None = None
    training: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_fields_of_task(self) -> Self:
        for field in _REQUIRED[self.task_type]:
            if getattr(self, field) is None:
                raise problem(f"{field}: missing; {self.task_type.value} requires it")
        if self.task_type is TaskType.CLASSIFICATION:
            _check_labels(self.labels or ())
        if self.task_type is TaskType.FEATURES and self.format_version < LATEST_VERSION:
            raise problem(f"task_type: {TaskType.FEATURES} needs format_version 3, got {self.format_version}")
        if self.calibration is not None and self.task_type is not TaskType.FEATURES:
            wanted = ("temperature",) if self.task_type is TaskType.CLASSIFICATION else ("slope", "intercept")
            for field in wanted:
                if getattr(self.calibration, field) is None:
                    raise problem(f"calibration.{field}: missing; {self.task_type.value} calibrates with it")
        return self

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.input.window_frames is None and self.format_version < LATEST_VERSION:
            raise problem("input.window_frames: expected a valid integer, got null; whole clips need format_version 3")
        try:
            words = self.input_words
        except ValidationError as error:
            raise problem("; ".join(f"input.{_explain_one(each)}" for each in error.errors())) from None
        if words.normalize and not self.backbone.model_type.reads_samples:
            raise problem(f"input.normalize: expected false, as {self.backbone.model_type} reads a filter bank")
        return self

    @model_validator(mode="after")
    def _check_normalisation(self) -> Self:
        if self.backbone.model_type is ModelType.AST:
            for field in ("mean", "std"):
                if getattr(self.input, field) is None:
                    raise problem(f"input.{field}: missing; {ModelType.AST.value} requires it")
        return self

    @property
    def input_words(self) -> InputWords:
        """What `input` says that version 3 has. Raises ValidationError."""
        newer = self.format_version >= LATEST_VERSION
        return InputWords.model_validate((self.input.model_extra or {}) if newer else {})

    @property
    def window_frames(self) -> int:
        """The window's length; of whole clips the most of one that is read."""
        return self.input.window_frames or self.input_words.max_window_frames

    @property
    def least_window_frames(self) -> int:
        """The shortest window that a clip may have, for whole clips about."""
        return self.input.window_frames or min(TRIED_FRAMES, self.window_frames)

    @property
    def speech_needed(self) -> SpeechSection:
        """How long somebody has to speak, with the contract's defaults."""
        return self.speech or SpeechSection()

    @property
    def outputs(self) -> int:
        """Classes, or the embedding's dimension."""
        if self.task_type is TaskType.CLASSIFICATION:
            return len(self.labels or ())
        return self.embedding_dim or 0

    def adapter_spec(self) -> AdapterSpec:
        """Geometry for the model."""
        return self._geometry

    @cached_property
    def _geometry(self) -> AdapterSpec:
        return AdapterSpec(tuple(read_parts(self.model_dump())[0]))

    def input_spec(self) -> InputSpec:
        """Input for the features; `short` defaults to zeros for AST and repeat for wav2vec 2.0.

        Normalisation is left at its default for wav2vec 2.0, which has none, so that adapters that differ
        only there share their windows.
        """
        section, whole = self.input, self.input.window_frames is None
        if self.backbone.model_type.reads_samples:
            return InputSpec(
                self.window_frames,
                section.windows,
                section.hop_frames,
                short=section.short or "repeat",
                whole=whole,
                normalize=self.input_words.normalize,
            )
        if section.mean is None or section.std is None:
            raise InvalidBundle("input.mean and input.std: missing; AST requires them")
        return InputSpec(
            self.window_frames,
            section.windows,
            section.hop_frames,
            mean=section.mean,
            std=section.std,
            short=section.short or "zeros",
            whole=whole,
        )

    def to_bytes(self) -> bytes:
        """The manifest as it is written to a bundle; fields that were never set are left out."""
        return _encode(self.model_dump(mode="json", exclude_unset=True))


def parse_manifest(raw: bytes, limits: ManifestLimits | None = None) -> Manifest:
    """Parse and check `adapter_config.json`.

    Raises:
        InvalidBundle: names every wrong field (the first five), what it holds and what would be right.
    """
    manifest = _parse(raw)
    if limits is not None:
        check_limits(manifest, limits)
    return manifest


@lru_cache(maxsize=16)  # an upload's config comes again as its row
def _parse(raw: bytes) -> Manifest:
    fields = parse_object(raw, CONFIG_FILE, MAX_CONFIG_BYTES)
    errors = read_parts(fields)[1]
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        errors.insert(0, error)
    if errors:
        raise InvalidBundle(_explain(errors))
    return manifest


def build_manifest(fields: Mapping[str, Any]) -> Manifest:
    """A manifest from plain values in the contract's form, checked as an upload would be."""
    try:
        return parse_manifest(_encode(dict(fields)))
    except (TypeError, ValueError) as error:
        raise InvalidBundle(f"{CONFIG_FILE} cannot be written as JSON: {error}") from None


def check_limits(manifest: Manifest, limits: ManifestLimits) -> None:
    """Raise InvalidBundle where a part of the adapter is larger than accepted, or its window too short."""
    for name, got in manifest.adapter_spec().sizes.items():
        limit = limits.sizes.get(name, got)
        if got > limit:
            flag = f" (the server's --max-{name.replace('_', '-')})" if name in ADJUSTABLE else ""
            raise InvalidBundle(f"{CONFIG_FILE}: {name}: expected at most {limit}{flag}, got {got}")
    if manifest.window_frames < limits.min_window_frames:
        raise InvalidBundle(
            f"{CONFIG_FILE}: input.window_frames: expected at least {limits.min_window_frames}, the shortest input of "
            f"this backbone, got {manifest.window_frames}"
        )


def _check_labels(labels: tuple[str, ...]) -> None:
    if not labels:
        raise problem("labels: expected at least one label, got none")
    seen: dict[str, int] = {}
    for index, label in enumerate(labels):
        if not label.strip() or any(unicodedata.category(character) == "Cc" for character in label):
            raise problem(f"labels.{index}: expected text without control characters, got {_show(label)}")
        if label in seen:
            raise problem(f"labels.{index}: {_show(label)} is also label {seen[label]}; labels must differ")
        seen[label] = index


def _explain(found: Sequence[ValidationError]) -> str:
    errors = [details for error in found for details in error.errors(include_url=False)]
    lines = "; ".join(_explain_one(details) for details in errors[:_MAX_ERRORS])
    more = f"; and {len(errors) - _MAX_ERRORS} more" if len(errors) > _MAX_ERRORS else ""
    return f"{CONFIG_FILE}: {lines}{more}"


def _explain_one(details: ErrorDetails) -> str:
    path = ".".join(str(part) for part in details["loc"])
    if details["type"] == "manifest":
        return details["msg"]
    if details["type"] == "missing":
        return f"{path}: missing; it is required"
    message = details["msg"].replace("Input should be", "expected").replace("String should", "text should")
    return f"{path}: {message}, got {_show(details['input'])}"


def _show(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _encode(fields: dict[str, Any]) -> bytes:
    text = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()
