"""The calls of the REST API as values: what each sends, and how its answer is read. Knows no network."""

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeAlias, TypeVar, cast
from urllib.parse import quote

from service import answers
from service.cards import read_card

Json = dict[str, Any]
Audio: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO  # encoded audio, or its file
Files = list[tuple[str, tuple[str, bytes | Path]]]

PAGE = 200  # adapters in one answer
CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how to read its answer.

    Args:
        files: name of each part, and its file's; what is a path is read from disk while it is sent.
        items: the member of the answer that holds a page of a list; the next page follows after its `next`.
        repeatable: whether it may be sent again although the first may have arrived.
        patient: whether it is sent again where the service says to try later.
        endless: whether sending it and the answer may take as long as they do.
        sent: called with the bytes of each piece that is read from disk.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    params: Sequence[tuple[str, str]] = ()
    files: Files | None = None
    json: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    items: str | None = None
    repeatable: bool = True
    patient: bool = True
    endless: bool = False
    sent: Callable[[int], None] = lambda count: None

    @contextmanager
    def arguments(self) -> Iterator[dict[str, Any]]:
        """What an HTTP client is to send; files on disk are open inside. Raises OSError."""
        given = {"method": self.method, "url": self.path, "params": list(self.params) or None}
        with ExitStack() as opened:
            files: list[tuple[str, tuple[str, Any]]] = []
            for part, (name, one) in self.files or ():
                content = _OnDisk(opened.enter_context(one.open("rb")), self.sent) if isinstance(one, Path) else one
                files.append((part, (name, content)))
            yield given | {"files": files or None, "json": self.json, "headers": dict(self.headers)}

    def then(self, content: bytes) -> "Call[T] | None":
        """The call for the page after this one, which was answered with `content`; None after the last."""
        after = None if self.items is None else json.loads(content).get("next")
        if after is None:
            return None
        return replace(self, params=[*(pair for pair in self.params if pair[0] != "after"), ("after", str(after))])


class _OnDisk:
    """An open file that tells what is read of it."""

    def __init__(self, file: BinaryIO, sent: Callable[[int], None]) -> None:
        self.fileno, self._read, self._sent = file.fileno, file.read, sent

    def read(self, size: int = -1) -> bytes:
        piece = self._read(size)
        self._sent(len(piece))
        return piece


def _json(content: bytes) -> Any:
    return json.loads(content)


def _nothing(content: bytes) -> None:
    return None


def _pages(path: str, items: str, params: Sequence[tuple[str, str]]) -> Call[list[Any]]:
    """Every page of a list, which is the member `items` of each answer."""
    return Call("GET", path, lambda content: json.loads(content)[items], params, items=items)


def _speaker(speaker: str, *rest: str | int) -> str:
    return "/".join(["/v1/speakers", *(quote(str(part), safe="") for part in (speaker, *rest))])


def _job(job: str, *rest: str) -> str:
    return "/".join(["/v1/jobs", quote(job, safe=""), *rest])


def _given(**options: object) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in options.items() if value is not None]


def _files(part: str, clips: Audio | Sequence[Audio]) -> Files:
    one = isinstance(clips, bytes | bytearray | memoryview | str | os.PathLike) or hasattr(clips, "read")
    listed = [cast(Audio, clips)] if one else list(cast(Sequence[Audio], clips))
    if not listed:
        raise ValueError("no clip is given")
    return [(part, _file(clip)) for clip in listed]


def _file(clip: Audio) -> tuple[str, bytes | Path]:
    if isinstance(clip, bytes | bytearray | memoryview):
        return "clip", bytes(clip)
    if isinstance(clip, str | os.PathLike):
        return Path(clip).name, Path(clip)
    content = clip.read()
    if not isinstance(content, bytes):
        raise TypeError('a clip was opened as text; open it with mode "rb"')
    return Path(str(getattr(clip, "name", "clip"))).name, content


def _asked(adapter: str | Sequence[str], **options: object) -> list[tuple[str, str]]:
    references = [adapter] if isinstance(adapter, str) else list(adapter)
    return [("adapter", reference) for reference in references] + [
        (name, str(value).lower()) for name, value in options.items()
    ]


def _adapter(name: str, *rest: str | int) -> str:
    return "/".join(["/v1/adapters", *(quote(str(part), safe="@") for part in (name, *rest))])


def ready() -> Call[answers.Health]:
    """Whether the service can answer; ProblemError `not_ready` before that."""
    return Call("GET", "/readyz", _json, patient=False)


def backbone() -> Call[answers.BackboneInfo]:
    """The frozen backbone that every adapter runs on."""
    return Call("GET", "/v1/backbone", _json)


def classify(
    audio: Audio | Sequence[Audio], adapter: str | Sequence[str], top_k: int = 5, windows: bool = False
) -> Call[answers.ClassifyAnswer]:
    """Labels of one or more clips by one or more adapters; `top_k` 0 is all of them.

    A clip is encoded audio, the path of its file, or the file opened in binary mode.
    """
    params = _asked(adapter, top_k=top_k, windows=windows)
    return Call("POST", "/v1/classify", _json, params, files=_files("audio", audio))


def events(
    audio: Audio,
    adapter: str | Sequence[str],
    hop: float = 0.5,
    threshold: float | None = None,
    hysteresis: float | None = None,
    smoothing: float | None = None,
    min_seconds: float | None = None,
    merge_gap: float | None = None,
    sent: Callable[[int], None] = lambda count: None,
) -> Call[answers.EventsAnswer]:
    """What was heard from when to when in one recording; None is what the adapter says, seconds and scores.

    A file of any size is sent from disk and waited for as long as it takes; `sent` is called with the bytes of each
    piece. Where it broke after its first window, the answer has the events until then, and `error`.
    """
    asked = {"threshold": threshold, "hysteresis": hysteresis, "smoothing": smoothing}
    params = _asked(adapter, hop=hop) + _given(**asked, min_seconds=min_seconds, merge_gap=merge_gap)
    return Call("POST", "/v1/events", _json, params, files=[("audio", _file(audio))], endless=True, sent=sent)


def embed(audio: Audio | Sequence[Audio], adapter: str | Sequence[str]) -> Call[answers.EmbedAnswer]:
    """Voiceprints of one or more clips."""
    return Call("POST", "/v1/embed", _json, _asked(adapter), files=_files("audio", audio))


def score(enrolment: Audio | Sequence[Audio], test: Audio, adapter: str) -> Call[answers.ScoreAnswer]:
    """Whether the clip `test` is of the speaker of the clips `enrolment`."""
    files = _files("enrolment", enrolment) + _files("test", test)
    return Call("POST", "/v1/score", _json, _asked(adapter), files=files)


def score_embeddings(
    enrolment: Sequence[Sequence[float]], test: Sequence[float], adapter: str
) -> Call[answers.ScoreAnswer]:
    """As `score`, of embeddings that `embed` answered."""
    body = {"enrolment": enrolment, "test": test}
    return Call("POST", "/v1/score", _json, _asked(adapter), json=body)


def adapters(
    q: str | None = None,
    task: str | None = None,
    state: str | None = None,
    family: str | None = None,
    domain: str | None = None,
) -> Call[list[answers.Adapter]]:
    """Every adapter, on however many pages: with `q` in name or description, of a task, state, family, domain."""
    params = _given(limit=PAGE, q=q, task=task, state=state, family=family, domain=domain)
    return _pages("/v1/adapters", "adapters", params)


def adapter(name: str) -> Call[answers.Adapter]:
    """One adapter with its versions and aliases."""
    return Call("GET", _adapter(name), _json)


def history(name: str, limit: int = 100, after: str | None = None) -> Call[answers.History]:
    """Who changed the adapter, when and what, newest first; `after` is `next` of the answer before."""
    return Call("GET", _adapter(name, "history"), _json, _given(limit=limit, after=after))


def push(
    bundle: str | os.PathLike[str], name: str | None = None, activate: bool = True, idempotency_key: str | None = None
) -> Call[answers.Uploaded]:
    """Uploads a bundle directory as its adapter's next version; `name` may only be the bundle's own.

    A retry with the same `idempotency_key` is answered as the first try was; retries of one call have one of their own.

    Raises:
        FileNotFoundError: the directory is no bundle; says what is missing.
        ValueError: its config is no JSON object with a name, or names another adapter than `name`.
    """
    directory = Path(bundle)
    if missing := [file for file in (CONFIG, WEIGHTS) if not (directory / file).is_file()]:
        raise FileNotFoundError(
            f"{directory} is no bundle: it has no {' and no '.join(missing)} (a bundle is a directory with both files)"
        )
    config = (directory / CONFIG).read_bytes()
    own = _name_of(config, directory / CONFIG)
    if name not in (None, own):
        raise ValueError(
            f'{directory / CONFIG} says "name": "{own}", so it can be no version of {name!r}; '
            "change the name there, or leave the other out"
        )
    files: Files = [("config", (CONFIG, config)), ("weights", (WEIGHTS, directory / WEIGHTS))]
    if (directory / CARD).exists():
        files.append(("card", (CARD, read_card(directory / CARD))))
    params = [("activate", str(activate).lower())]
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return Call("POST", _adapter(own, "versions"), _json, params, files=files, headers=headers)


def _name_of(config: bytes, path: Path) -> str:
    try:
        name = json.loads(config)["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no JSON object with a name: {error}") from error
    if not isinstance(name, str):
        raise ValueError(f'{path} has "name": {name!r}, which is no string')
    return name


def config(name: str, version: int) -> Call[bytes]:
    """The version's adapter_config.json, byte for byte."""
    return Call("GET", _adapter(name, "versions", version, "config"), bytes)


def weights(name: str, version: int) -> Call[bytes]:
    """The version's adapter_model.safetensors, byte for byte."""
    return Call("GET", _adapter(name, "versions", version, "weights"), bytes)


def activate(name: str, version: int, alias: str = "live") -> Call[answers.Adapter]:
    """Points an alias at a version; `live` is what the bare name means."""
    return Call("PUT", _adapter(name, "aliases", alias), _json, json={"version": version})


def residency(name: str, action: str) -> Call[answers.Residency]:
    """`load`, `unload`, `pin` or `unpin`."""
    return Call("POST", _adapter(name, action), _json)


def delete(name: str, version: int | None = None, alias: str | None = None) -> Call[None]:
    """Deletes a version or an alias, or with neither the whole adapter."""
    rest = [("versions", version), ("aliases", alias)]
    given = [part for pair in rest if pair[1] is not None for part in pair if part is not None]
    return Call("DELETE", _adapter(name, *given), _nothing, repeatable=False)


def speakers(status: str | None = None, adapter: str | None = None) -> Call[list[Json]]:
    """Every speaker of the key's domain, or those who stand so; docs/SPEAKERS.md tells the fields."""
    return _pages("/v1/speakers", "speakers", _given(limit=PAGE, status=status, adapter=adapter))


def speaker(speaker: str, adapter: str | None = None) -> Call[Json]:
    """One speaker: consent, status and enrolments."""
    return Call("GET", _speaker(speaker), _json, _given(adapter=adapter))


def put_speaker(speaker: str, **fields: object) -> Call[Json]:
    """Makes a speaker, or sets `consent` (`{"by", "at", "text"}`) and `expires` (`"365d"`); None removes one."""
    return Call("PUT", _speaker(speaker), _json, json=fields)


def enrol(speaker: str, audio: Audio | Sequence[Audio], adapter: str, idempotency_key: str | None = None) -> Call[Json]:
    """Adds clips to a speaker's voiceprint; a retry with the same `idempotency_key` is answered as the first was."""
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    path, files = _speaker(speaker, "enrolments"), _files("audio", audio)
    return Call("POST", path, _json, _asked(adapter), files=files, headers=headers)


def verify(
    speaker: str,
    audio: Audio | Sequence[Audio],
    adapter: str,
    threshold: str | float | None = None,
    prior: float | None = None,
) -> Call[Json]:
    """Whether a voice is the speaker's, by a named threshold or a cosine."""
    params = _asked(adapter) + _given(threshold=threshold, prior=prior)
    return Call("POST", _speaker(speaker, "verify"), _json, params, files=_files("audio", audio))


def identify(audio: Audio, adapter: str, among: Sequence[str] = (), top_k: int = 5) -> Call[Json]:
    """Whose voice it is of everybody who is enrolled, or `among` some."""
    params = [*_asked(adapter, top_k=top_k), *(("among", one) for one in among)]
    return Call("POST", _speaker("identify"), _json, params, files=_files("audio", audio))


def opt_out(speaker: str) -> Call[Json]:
    """Removes a person's voiceprints, and takes no more until `opt_in`."""
    return Call("POST", _speaker(speaker, "opt-out"), _json)


def opt_in(speaker: str) -> Call[Json]:
    """Lifts an opt-out."""
    return Call("POST", _speaker(speaker, "opt-in"), _json)


def export_speaker(speaker: str) -> Call[Json]:
    """All that is stored of a person, the voiceprints too."""
    return Call("GET", _speaker(speaker, "export"), _json)


def delete_speaker(speaker: str, enrolment: int | None = None) -> Call[None]:
    """Deletes a person, or one of their enrolments, for good."""
    rest = () if enrolment is None else ("enrolments", enrolment)
    return Call("DELETE", _speaker(speaker, *rest), _nothing, repeatable=False)


def add_job(
    audio: Audio, adapter: str | Sequence[str], hop: float = 0.5, idempotency_key: str | None = None, **asked: float
) -> Call[answers.JobAdded]:
    """Begins a job that finds what `events` finds, by the same parameters; `job` follows it."""
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    direct = events(audio, adapter, hop, **cast(Json, asked))
    return Call("POST", "/v1/jobs", _json, direct.params, files=direct.files, headers=headers, endless=True)


def enrol_many(
    clips: Mapping[str, Audio | Sequence[Audio]], adapter: str, idempotency_key: str | None = None
) -> Call[answers.JobAdded]:
    """Begins a job that enrols many speakers, each by their clips; `job` follows it."""
    files = [file for speaker, some in clips.items() for file in _files(speaker, some)]
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return Call("POST", "/v1/speakers/jobs", _json, _asked(adapter), files=files, headers=headers, endless=True)


def jobs(status: str | None = None) -> Call[list[answers.Job]]:
    """The jobs of the key's domain, newest first, or those that stand so."""
    return _pages("/v1/jobs", "jobs", _given(limit=PAGE, status=status))


def job(job: str) -> Call[answers.Job]:
    """How far a job has come: its `status` is queued, running, done, failed or cancelled."""
    return Call("GET", _job(job), _json)


def job_result(job: str) -> Call[Json]:
    """What came of a job; ProblemError `conflict` before it has ended."""
    return Call("GET", _job(job, "result"), _json)


def delete_job(job: str) -> Call[None]:
    """Cancels a job; removes one that has ended."""
    return Call("DELETE", _job(job), _nothing, repeatable=False)
