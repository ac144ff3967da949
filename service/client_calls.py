"""The calls of the REST API as values: what each sends, and how its answer is read. Knows no network."""

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeAlias, TypeVar, cast
from urllib.parse import quote

from service import client_answers as answers

Json = dict[str, Any]
Audio: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO  # encoded audio, or its file
Files = list[tuple[str, tuple[str, bytes]]]

PAGE = 200  # adapters in one answer
CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how to read its answer.

    Args:
        items: the member of the answer that holds a page of a list; the next page follows after its `next`.
        repeatable: whether it may be sent again although the first may have arrived.
        patient: whether it is sent again where the service says to try later.
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

    def arguments(self) -> dict[str, Any]:
        """What an HTTP client is to send."""
        given = {"method": self.method, "url": self.path, "params": list(self.params) or None}
        return given | {"files": self.files, "json": self.json, "headers": dict(self.headers)}

    def then(self, content: bytes) -> "Call[T] | None":
        """The call for the page after this one, which was answered with `content`; None after the last."""
        after = None if self.items is None else json.loads(content).get("next")
        if after is None:
            return None
        return replace(self, params=[*(pair for pair in self.params if pair[0] != "after"), ("after", str(after))])


def _json(content: bytes) -> Any:
    return json.loads(content)


def _nothing(content: bytes) -> None:
    return None


def _adapters(content: bytes) -> list[answers.Adapter]:
    return cast(list[answers.Adapter], json.loads(content)["adapters"])


def _files(part: str, clips: Audio | Sequence[Audio]) -> Files:
    one = isinstance(clips, bytes | bytearray | memoryview | str | os.PathLike) or hasattr(clips, "read")
    listed = [cast(Audio, clips)] if one else list(cast(Sequence[Audio], clips))
    if not listed:
        raise ValueError("no clip is given")
    return [(part, _file(clip)) for clip in listed]


def _file(clip: Audio) -> tuple[str, bytes]:
    if isinstance(clip, bytes | bytearray | memoryview):
        return "clip", bytes(clip)
    if isinstance(clip, str | os.PathLike):
        return Path(clip).name, Path(clip).read_bytes()
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


def ready() -> Call[answers.Ready]:
    """Whether the service can answer; ProblemError `not_ready` before that."""
    return Call("GET", "/readyz", _json, patient=False)


def backbone() -> Call[answers.Backbone]:
    """The frozen backbone that every adapter runs on."""
    return Call("GET", "/v1/backbone", _json)


def classify(
    audio: Audio | Sequence[Audio], adapter: str | Sequence[str], top_k: int = 5, windows: bool = False
) -> Call[answers.Classified]:
    """Labels of one or more clips by one or more adapters; `top_k` 0 is all of them.

    A clip is encoded audio, the path of its file, or the file opened in binary mode.
    """
    params = _asked(adapter, top_k=top_k, windows=windows)
    return Call("POST", "/v1/classify", _json, params, files=_files("audio", audio))


def embed(audio: Audio | Sequence[Audio], adapter: str | Sequence[str]) -> Call[answers.Embedded]:
    """Voiceprints of one or more clips."""
    return Call("POST", "/v1/embed", _json, _asked(adapter), files=_files("audio", audio))


def score(enrolment: Audio | Sequence[Audio], test: Audio, adapter: str) -> Call[answers.Score]:
    """Whether the clip `test` is of the speaker of the clips `enrolment`."""
    files = _files("enrolment", enrolment) + _files("test", test)
    return Call("POST", "/v1/score", _json, _asked(adapter), files=files)


def score_embeddings(enrolment: Sequence[Sequence[float]], test: Sequence[float], adapter: str) -> Call[answers.Score]:
    """As `score`, of embeddings that `embed` answered."""
    body = {"enrolment": enrolment, "test": test}
    return Call("POST", "/v1/score", _json, _asked(adapter), json=body)


def adapters(q: str | None = None, task: str | None = None, state: str | None = None) -> Call[list[answers.Adapter]]:
    """Every adapter, however many pages they fill: those with `q` in name or description, of a task, in a state."""
    chosen = {"limit": str(PAGE), "q": q, "task": task, "state": state}
    params = [(name, value) for name, value in chosen.items() if value is not None]
    return Call("GET", "/v1/adapters", _adapters, params, items="adapters")


def adapter(name: str) -> Call[answers.Adapter]:
    """One adapter with its versions and aliases."""
    return Call("GET", _adapter(name), _json)


def history(name: str, limit: int = 100, after: str | None = None) -> Call[answers.History]:
    """Who changed the adapter, when and what, newest first; `after` is `next` of the answer before."""
    params = [("limit", str(limit))] + ([] if after is None else [("after", after)])
    return Call("GET", _adapter(name, "history"), _json, params)


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
    files: Files = [("config", (CONFIG, config)), ("weights", (WEIGHTS, (directory / WEIGHTS).read_bytes()))]
    if (directory / CARD).exists():
        files.append(("card", (CARD, (directory / CARD).read_bytes())))
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
