"""What the service answers, as types of its JSON: docs/API.md says what each field means."""

from typing import Literal, NotRequired, TypedDict


class Ready(TypedDict):
    status: Literal["ok", "ready"]
    degraded: NotRequired[str]


class Backbone(TypedDict):
    name: str
    model_type: str
    fingerprint: str
    hidden_size: int
    num_hidden_layers: int
    parameters: int
    device: str
    dtype: str


class LabelScore(TypedDict):
    label: str
    score: float


class Window(TypedDict):
    start: float  # seconds
    end: float
    labels: list[LabelScore]


class ClipInfo(TypedDict):
    seconds: float
    sampling_rate: int
    channels: int


class Classification(TypedDict):
    clip: int
    adapter: str
    version: int
    labels: list[LabelScore]
    heard: list[tuple[float, float]]  # seconds of the clip that the windows covered
    unknown: NotRequired[Literal[True]]  # the best score is below the adapter's `reject_below`
    windows: NotRequired[list[Window]]


class Classified(TypedDict):
    results: list[Classification]
    audio: list[ClipInfo]


class Embedding(TypedDict):
    clip: int
    adapter: str
    version: int
    embedding: list[float]
    speech_seconds: float
    heard: list[tuple[float, float]]


class Embedded(TypedDict):
    results: list[Embedding]
    audio: list[ClipInfo]


class SpeechSeconds(TypedDict):
    enrolment: float
    test: float


class Score(TypedDict):
    adapter: str
    version: int
    score: float | None  # None where there is not enough speech
    threshold: float
    decision: Literal["accept", "reject", "not_enough_speech"]
    speech_seconds: SpeechSeconds | None  # None where embeddings were sent
    log_likelihood_ratio: NotRequired[float]


class Version(TypedDict):
    version: int
    digest: str
    created: str
    state: Literal["registered", "loading", "resident", "failed"]
    verified: bool
    tier: str
    pinned: bool
    reason: str | None


class Adapter(TypedDict):
    name: str
    task_type: str | None
    live: int | None
    aliases: dict[str, int]
    versions: list[Version]


class Uploaded(TypedDict):
    name: str
    version: int
    digest: str
    live: bool


class Change(TypedDict):
    id: int
    at: str
    actor: str
    action: str
    version: int | None
    alias: str | None
    previous: int | None
    digest: str | None


class History(TypedDict):
    history: list[Change]
    next: str | None


class Residency(TypedDict):
    name: str
    version: int
    state: str
    tier: str
    pinned: bool
