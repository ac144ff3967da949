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
    windows: NotRequired[list[Window]]


class Classified(TypedDict):
    results: list[Classification]
    audio: list[ClipInfo]


class Embedding(TypedDict):
    clip: int
    adapter: str
    version: int
    embedding: list[float]


class Embedded(TypedDict):
    results: list[Embedding]
    audio: list[ClipInfo]


class Score(TypedDict):
    adapter: str
    version: int
    score: float
    threshold: float
    decision: Literal["accept", "reject"]
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
