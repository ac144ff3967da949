"""What the service answers, as types of its JSON: for the routes that write it and the clients that read it.

A docstring under a field is its description, in the OpenAPI document too; fields of a base class would lose theirs.
"""

from collections.abc import Mapping
from typing import Literal, NotRequired

from typing_extensions import TypedDict, is_typeddict  # pydantic reads this one in every Python


class Health(TypedDict):
    status: Literal["ok", "ready"]
    degraded: NotRequired[str]
    """Why nothing can be changed while inference goes on."""


class BackboneInfo(TypedDict):
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
    """Probability, after the adapter's activation."""


class WindowLabels(TypedDict):
    start: float
    """Seconds from the clip's beginning."""
    end: float
    labels: list[LabelScore]


class ClipInfo(TypedDict):
    """What a clip was before it was decoded."""

    seconds: float
    sampling_rate: int
    channels: int


class Classification(TypedDict):
    clip: int
    """Index of the clip in the request."""
    adapter: str
    version: int
    labels: list[LabelScore]
    """Best first."""
    heard: list[tuple[float, float]]
    """Stretches of the clip that the adapter's windows covered, seconds from its beginning."""
    unknown: NotRequired[Literal[True]]
    """Where the best score is below the adapter's `reject_below`: it may be none of its labels."""
    windows: NotRequired[list[WindowLabels]]
    """With `windows=true`."""


class ClassifyAnswer(TypedDict):
    results: list[Classification]
    """By clip, then by adapter as asked."""
    audio: list[ClipInfo]


class EventInfo(TypedDict):
    adapter: str
    version: int
    label: str
    start: float
    """Seconds from the recording's beginning."""
    end: float
    score: float
    """The mean over the event."""


class EventParameters(TypedDict):
    """What made events of scores: of the request, the adapter's manifest, or the defaults. Seconds and scores."""

    hop: float
    threshold: float | dict[str, float]
    """One for all labels, or by label."""
    hysteresis: float | dict[str, float]
    smoothing: float
    min_seconds: float
    merge_gap: float


class RecordingProblem(TypedDict):
    """What a recording broke with."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    adapter: NotRequired[str]
    at: float
    """Where in the recording, seconds; the events are those until there."""


class EventsAnswer(TypedDict):
    events: list[EventInfo]
    """By their start."""
    audio: ClipInfo
    parameters: dict[str, EventParameters]
    """By adapter, as `name@version`."""
    error: NotRequired[RecordingProblem]


class Embedding(TypedDict):
    clip: int
    """Index of the clip in the request."""
    adapter: str
    version: int
    embedding: NotRequired[list[float]]
    """Of length 1; not there where `sealed` is asked for."""
    sealed: NotRequired[str]
    """With `sealed=true`: opaque, for /v1/score of the same domain."""
    speech_seconds: float
    """How long somebody speaks; it never changes the embedding."""
    heard: list[tuple[float, float]]
    """Stretches of the clip that the adapter's windows covered, seconds from its beginning."""


class EmbedAnswer(TypedDict):
    results: list[Embedding]
    audio: list[ClipInfo]


class SpeechSeconds(TypedDict):
    enrolment: float
    """Of its clips together."""
    test: float


class ScoreAnswer(TypedDict):
    adapter: str
    version: int
    score: float | None
    """Cosine of the enrolment and the test clip; null where there is not enough speech."""
    normalised_score: NotRequired[float | None]
    """Beside it, where the adapter has `normalisation`."""
    threshold: float
    decision: Literal["accept", "reject", "not_enough_speech"]
    speech_seconds: SpeechSeconds | None
    """How long somebody speaks; null where embeddings were sent. Both sides need the adapter's
    `speech.verify_seconds`, else `not_enough_speech`."""
    log_likelihood_ratio: NotRequired[float]
    """Where the adapter is calibrated."""


class Uploaded(TypedDict):
    name: str
    version: int
    digest: str
    live: bool


class Version(TypedDict):
    version: int
    digest: str
    created: str
    state: Literal["registered", "loading", "resident", "failed"]
    verified: bool
    """Whether the bundle names this backbone's fingerprint."""
    tier: Literal["device", "host", "disk"]
    """Where its weights are, the nearest place to the device."""
    pinned: bool
    reason: str | None
    """Why it failed, where it did."""
    families: list[str]
    """What its manifest says it is made of, by training methods' names."""
    domain: str | None
    """Whose quota it counts to; null is nobody's, as of bundles found at start."""


class VersionDetail(Version):
    """One version, with what its manifest says."""

    name: str
    task_type: str
    description: str | None
    labels: list[str] | None
    """Of a classifier, in the adapter's order."""
    input: dict[str, object]
    """How a clip becomes windows, as in the manifest."""
    parts: dict[str, int]
    """Sizes of what the adapter holds, by the manifest's names."""
    metrics: dict[str, object] | None
    license: str | None
    bytes: int
    """Of config and weights."""


class Adapter(TypedDict):
    name: str
    task_type: str | None
    """None where no version can be read by this release."""
    live: int | None
    aliases: dict[str, int]
    versions: list[Version]


class AdapterList(TypedDict):
    adapters: list[Adapter]
    next: str | None


class Change(TypedDict):
    """One change of an adapter."""

    id: int
    at: str
    actor: str
    """Id of the key; `anonymous` where none was asked for, `server` at start."""
    action: str
    version: int | None
    alias: str | None
    previous: int | None
    """The version that a moved or deleted alias pointed to."""
    digest: str | None


class History(TypedDict):
    history: list[Change]
    """Newest first."""
    next: str | None


class Residency(TypedDict):
    name: str
    version: int
    state: Literal["registered", "loading", "resident", "failed"]
    tier: Literal["device", "host", "disk"]
    pinned: bool


class JobAdded(TypedDict):
    id: str
    status: str


class Job(TypedDict):
    id: str
    kind: str
    """events or enrolment."""
    status: str
    """queued, running, done, failed or cancelled."""
    progress: float
    """0 to 1."""
    seconds: float
    """Of audio heard so far."""
    adapters: list[str]
    """The versions it runs on."""
    created: str
    started: str | None
    """When a server last took it up."""
    ended: str | None
    expires: str | None
    """When the job and its result go."""
    bytes: int
    """That its files take up."""
    error: Mapping[str, object] | None
    """The problem that it ended with."""


class JobList(TypedDict):
    jobs: list[Job]
    next: str | None


for _shape in list(globals().values()):
    if is_typeddict(_shape):
        _shape.__pydantic_config__ = {"use_attribute_docstrings": True}
