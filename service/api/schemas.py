"""Shapes of the answers and of the JSON that callers send; the contract's field names. Knows no routes."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, FiniteFloat

from service.access.keys import Scope
from service.engine.slots import State, Tier
from service.model.spec import TaskType
from service.registry.audit import Action
from service.scoring.score import Decision


class Answer(BaseModel):
    """Base of every answer."""

    model_config = ConfigDict(frozen=True)


class Health(Answer):
    status: Literal["ok", "ready"]
    degraded: str | None = Field(default=None, description="Why nothing can be changed while inference goes on.")


class BackboneInfo(Answer):
    name: str
    model_type: str
    fingerprint: str
    hidden_size: int
    num_hidden_layers: int
    parameters: int
    device: str
    dtype: str


class KeyLimits(Answer):
    rate: str | None = Field(description="Requests in a second, minute or hour, as in `10/s`.")
    concurrency: int | None = Field(description="Requests in flight.")
    domain_mb: int | None = Field(description="MiB of all versions of the domain.")
    domain_versions: int | None = Field(description="Versions of the domain.")


class KeyInfo(Answer):
    id: str = Field(description="`env:admin-1` and the like for the variables' keys, `anonymous` without keys.")
    name: str
    scopes: list[Scope]
    adapters: list[str] = Field(description="Names and patterns that the key is bound to; none is every adapter.")
    domain: str
    limits: KeyLimits = Field(description="Null where there is none.")


HEARD: Final = "Stretches of the clip that the adapter's windows covered, seconds from its beginning."


class LabelScore(Answer):
    label: str
    score: float = Field(description="Probability, after the adapter's activation.")


class WindowLabels(Answer):
    start: float = Field(description="Seconds from the clip's beginning.")
    end: float
    labels: list[LabelScore]


class Classification(Answer):
    clip: int = Field(description="Index of the clip in the request.")
    adapter: str
    version: int
    labels: list[LabelScore] = Field(description="Best first.")
    heard: list[tuple[float, float]] = Field(description=HEARD)
    unknown: Literal[True] | None = Field(
        None, description="Where the best score is below the adapter's `reject_below`: it may be none of its labels."
    )
    windows: list[WindowLabels] | None = Field(None, description="With `windows=true`.")


class ClipInfo(Answer):
    """What a clip was before it was decoded."""

    seconds: float
    sampling_rate: int
    channels: int


class ClassifyAnswer(Answer):
    results: list[Classification] = Field(description="By clip, then by adapter as asked.")
    audio: list[ClipInfo]


class Embedding(Answer):
    clip: int
    adapter: str
    version: int
    embedding: list[float] | None = Field(None, description="Of length 1; not there where `sealed` is asked for.")
    sealed: str | None = Field(None, description="With `sealed=true`: opaque, for /v1/score of the same domain.")
    speech_seconds: float = Field(description="How long somebody speaks; it never changes the embedding.")
    heard: list[tuple[float, float]] = Field(description=HEARD)


class EmbedAnswer(Answer):
    results: list[Embedding]
    audio: list[ClipInfo]


Vector = Annotated[list[FiniteFloat], Field(min_length=1, fail_fast=True)]  # thousands of faults cost more than one


Sealed = Annotated[str, Field(max_length=2**15, description="As /v1/embed answers it with `sealed=true`.")]


class ScoreRequest(BaseModel):
    """Embeddings or sealed voiceprints to compare, as /v1/embed answers them."""

    model_config = ConfigDict(extra="forbid")

    enrolment: Annotated[list[Vector | Sealed], Field(min_length=1), FailFast()]
    test: Vector | Sealed


class SpeechSeconds(Answer):
    enrolment: float = Field(description="Of its clips together.")
    test: float


class ScoreAnswer(Answer):
    adapter: str
    version: int
    score: float | None = Field(
        description="Cosine of the enrolment and the test clip; null where there is not enough speech."
    )
    threshold: float
    decision: Decision
    speech_seconds: SpeechSeconds | None = Field(
        description="How long somebody speaks; null where embeddings were sent. Both sides need the adapter's "
        "`speech.verify_seconds`, else `not_enough_speech`."
    )
    log_likelihood_ratio: float | None = Field(None, description="Where the adapter is calibrated.")


class HubParameters(BaseModel):
    """What Hugging Face's clients may ask of an audio classification; anything else is ignored, as there."""

    top_k: int | None = Field(default=5, ge=0, description="Labels to answer, best first; 0 or null is all of them.")
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = Field(
        default=None, description="The adapter's own activation, or nothing."
    )


class HubRequest(BaseModel):
    inputs: str = Field(description="The audio file's bytes in base64, in lines or not, or as a data URL.")
    parameters: HubParameters | None = None


class VersionInfo(Answer):
    version: int
    digest: str
    created: datetime
    state: State
    verified: bool = Field(description="Whether the bundle names this backbone's fingerprint.")
    tier: Tier = Field(description="Where its weights are, the nearest place to the device.")
    pinned: bool
    reason: str | None = Field(description="Why it failed, where it did.")


class VersionDetail(VersionInfo):
    """One version, with what its manifest says."""

    name: str
    task_type: TaskType
    description: str | None
    labels: list[str] | None = Field(description="Of a classifier, in the adapter's order.")
    input: dict[str, Any] = Field(description="How a clip becomes windows, as in the manifest.")
    parts: dict[str, int] = Field(description="Sizes of what the adapter holds, by the manifest's names.")
    metrics: dict[str, Any] | None
    license: str | None
    bytes: int = Field(description="Of config and weights.")


class AdapterInfo(Answer):
    name: str
    task_type: TaskType | None = Field(description="None where no version can be read by this release.")
    live: int | None
    aliases: dict[str, int]
    versions: list[VersionInfo]


class AdapterList(Answer):
    adapters: list[AdapterInfo]
    next: str | None = None


class Uploaded(Answer):
    name: str
    version: int
    digest: str
    live: bool


class Change(Answer):
    """One change of an adapter."""

    id: int
    at: datetime
    actor: str = Field(description="Id of the key; `anonymous` where none was asked for, `server` at start.")
    action: Action
    version: int | None
    alias: str | None
    previous: int | None = Field(description="The version that a moved or deleted alias pointed to.")
    digest: str | None


class History(Answer):
    history: list[Change] = Field(description="Newest first.")
    next: str | None = None


class Residency(Answer):
    name: str
    version: int
    state: State
    tier: Tier
    pinned: bool


class AliasRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1)


class Problem(Answer):
    """RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    clip: int | None = Field(None, description="Index of the clip at fault.")
    adapter: str | None = Field(None, description="The adapter at fault.")
    error: str | None = Field(None, description="The detail again, under /v2/ and /v1/huggingface/.")
