"""The manifest: `adapter_config.json` of a bundle, checked field by field. Knows no tensors and no files."""

import dataclasses
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from service.audio.features import InputSpec
from service.errors import InvalidBundle
from service.model.adapter import AdapterSpec
from service.model.parts.every import LIMITS, read_parts
from service.model.parts.part import LATEST_VERSION, problem
from service.model.spec import ModelType, TaskType
from service.registry.sections import (
    MIN_WINDOW_FRAMES,
    NAME,
    STRICT_VERSION,
    BackboneReference,
    Calibration,
    Checks,
    EventsSection,
    InputSection,
    InputWords,
    Label,
    Lenient,
    Moderate,
    Normalisation,
    Probability,
    Section,
    SpeechSection,
    ThresholdName,
)
from service.registry.strict_json import parse_object

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 2**20
MAX_LABELS = 10_000
MAX_EMBEDDING_DIM = 4096
TRIED_FRAMES = 128  # 1.28 s, of an adapter that reads whole clips
ADJUSTABLE = ("prompt_length", "bottleneck_dim")  # limits that are settings of the server
_REQUIRED: Mapping[TaskType, tuple[str, ...]] = {
    TaskType.CLASSIFICATION: ("labels", "activation"),
    TaskType.VERIFICATION: ("embedding_dim", "threshold"),
    TaskType.FEATURES: (),
}
_MAX_ERRORS = 5  # named in one message


def is_name(text: str) -> bool:
    """Whether `text` can name an adapter."""
    return NAME.fullmatch(text) is not None


def is_alias(text: str) -> bool:
    """Whether `text` can be an alias: as a name, and not all digits, which would be a version."""
    return is_name(text) and not text.isdigit()


@dataclass(frozen=True, slots=True)
class ManifestLimits:
    """Geometry accepted: the largest of each field that has a limit, and the backbone's shortest window."""

    sizes: Mapping[str, int] = dataclasses.field(default_factory=lambda: LIMITS)
    min_window_frames: int = MIN_WINDOW_FRAMES


class Manifest(Section):
    """`adapter_config.json`, as the contract's section 2 has it; the parts of the model read their own fields of it."""

    format_version: Literal[1, 2, 3]
    peft_type: Literal["IPET"]
    name: str = Field(pattern=f"^{NAME.pattern}$")
    task_type: TaskType
    base_model_name_or_path: str = Field(max_length=1024)
    backbone: BackboneReference
    labels: tuple[Label, ...] | None = Field(default=None, max_length=MAX_LABELS, fail_fast=True)
    activation: Literal["softmax", "sigmoid"] | None = None
    embedding_dim: int | None = Field(default=None, ge=1, le=MAX_EMBEDDING_DIM)
    threshold: float | None = Field(default=None, ge=-1, le=1)
    calibration: Calibration | None = None
    input: InputSection
    speech: Annotated[SpeechSection | None, Lenient] = None
    reject_below: Annotated[Probability | None, Lenient] = None
    events: Annotated[EventsSection | None, Lenient] = None
    thresholds: Annotated[dict[ThresholdName, Moderate] | None, Lenient] = None
    merge: Annotated[Literal["mean", "best"] | None, Lenient] = None
    normalisation: Annotated[Normalisation | None, Lenient] = None
    checks: Annotated[Checks | None, Lenient] = None
    metrics: dict[str, Any] | None = None
    license: str | None = None
    description: str | None = None
    training: dict[str, Any] | None = None
    _spec: AdapterSpec = PrivateAttr(AdapterSpec(()))  # what the parts say, see `_parse`
    _words: InputWords = PrivateAttr(InputWords())

    @model_validator(mode="after")
    def _check_fields_of_task(self) -> Self:
        for field in _REQUIRED[self.task_type]:
            if getattr(self, field) is None:
                raise problem(f"{field}: missing; {self.task_type.value} requires it")
        if self.task_type is TaskType.CLASSIFICATION:
            _check_labels(self.labels or ())
            self._check_events()
        if self.task_type is TaskType.FEATURES and self.format_version < LATEST_VERSION:
            raise problem(f"task_type: {TaskType.FEATURES} needs format_version 3, got {self.format_version}")
        if self.calibration is not None and self.task_type is not TaskType.FEATURES:
            wanted = ("temperature",) if self.task_type is TaskType.CLASSIFICATION else ("slope", "intercept")
            for field in wanted:
                if getattr(self.calibration, field) is None:
                    raise problem(f"calibration.{field}: missing; {self.task_type.value} calibrates with it")
        return self

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        newer = self.format_version >= LATEST_VERSION
        if self.input.window_frames is None and not newer:
            raise problem("input.window_frames: expected a valid integer, got null; whole clips need format_version 3")
        if self.input.short == "center" and not newer:
            raise problem('input.short: expected "zeros" or "repeat", got "center", which needs format_version 3')
        try:
            self._words = InputWords.model_validate((self.input.model_extra or {}) if newer else {})
        except ValidationError as error:
            raise problem("; ".join(f"input.{_explain_one(each)}" for each in error.errors())) from None
        if self.backbone.model_type is not ModelType.AST:
            return self
        if self._words.normalize:
            raise problem(f"input.normalize: expected false, as {ModelType.AST} reads a filter bank")
        for field in ("mean", "std"):
            if getattr(self.input, field) is None:
                raise problem(f"input.{field}: missing; {ModelType.AST} requires it")
        return self

    def _check_events(self) -> None:
        levels = self.events.threshold if self.events is not None else None
        unknown = set(levels) - set(self.labels or ()) if isinstance(levels, dict) else set()
        if unknown and self.format_version >= STRICT_VERSION:
            raise problem(f"events.threshold: expected labels of the adapter, got {_show(min(unknown))}")

    @property
    def events_asked(self) -> dict[str, Any]:
        """What `events` sets, by the names of the timeline's parameters."""
        named = set(EventsSection.model_fields) - {"window_frames"}
        return self.events.model_dump(include=named, exclude_unset=True) if self.events else {}

    @property
    def recording_frames(self) -> int:
        """The length of a recording's windows, at most that of a clip's."""
        asked = self.events.window_frames if self.events is not None else None
        return min(asked or self.window_frames, self.window_frames)

    @property
    def window_frames(self) -> int:
        """The window's length; of whole clips the most of one that is read."""
        return self.input.window_frames or self._words.max_window_frames

    @property
    def least_window_frames(self) -> int:
        """The shortest window that a clip may have, for whole clips about."""
        return self.input.window_frames or min(TRIED_FRAMES, self.window_frames)

    @property
    def speech_needed(self) -> SpeechSection:
        """How long somebody has to speak, with the contract's defaults."""
        return self.speech or SpeechSection()

    def adapter_spec(self) -> AdapterSpec:
        """Geometry for the model."""
        return self._spec

    def recording_spec(self) -> InputSpec:
        """Input for the features of a long recording."""
        return dataclasses.replace(self.input_spec(), window_frames=self.recording_frames)

    def input_spec(self) -> InputSpec:
        """Input for the features; `short` defaults to zeros for AST and repeat for wav2vec 2.0.

        Normalisation is left at its default for wav2vec 2.0, which has none, so that adapters that differ
        only there share their windows.
        """
        section, reads_samples = self.input, self.backbone.model_type.reads_samples
        statistics: dict[str, Any] = {} if reads_samples else {"mean": section.mean, "std": section.std}
        return InputSpec(
            self.window_frames,
            section.windows,
            section.hop_frames,
            short=section.short or ("repeat" if reads_samples else "zeros"),
            whole=section.window_frames is None,
            normalize=self._words.normalize,
            **statistics,
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
    parts, errors = read_parts(parse_object(raw, CONFIG_FILE, MAX_CONFIG_BYTES))
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        errors.insert(0, error)
    if errors:
        raise InvalidBundle(_explain(errors))
    manifest._spec = AdapterSpec(tuple(parts))
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
    for name, frames in (("input", manifest.window_frames), ("events", manifest.recording_frames)):
        if frames < limits.min_window_frames:
            raise InvalidBundle(
                f"{CONFIG_FILE}: {name}.window_frames: expected at least {limits.min_window_frames}, the shortest "
                f"input of this backbone, got {frames}"
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
    hint = " (what PEFT saved is taken with convert=true, or by `ipet import`)" if path == "peft_type" else ""
    return f"{path}: {message}, got {_show(details['input'])}{hint}"


def _show(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _encode(fields: dict[str, Any]) -> bytes:
    text = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()
