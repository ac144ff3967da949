"""Client of the REST API, sync and async. Knows httpx and the contract, and nothing else of the service.

    with Client("http://127.0.0.1:8000") as client:
        client.classify("dog.wav", adapter="sound-events")["results"][0]["labels"]

Both clients have the same methods, as both run the same `Call`s.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, ParamSpec, Self, TypeVar, cast, overload
from urllib.parse import quote

import httpx

Json = dict[str, Any]
Audio = bytes | str | Path  # encoded audio, or the file that holds it
Files = list[tuple[str, tuple[str, bytes]]]

DEFAULT_URL: Final = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT: Final = 90.0  # seconds; the service's own deadline is 60

P = ParamSpec("P")
T = TypeVar("T")


class ProblemError(Exception):
    """The service refused; `code` is stable (see docs/API.md), `detail` is for people.

    Args:
        retry_after: seconds to wait before another try, where the service said so.
        members: the whole problem document.
    """

    def __init__(
        self, status: int, code: str, detail: str, retry_after: float | None = None, members: Json | None = None
    ) -> None:
        super().__init__(f"{code} ({status}): {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after = retry_after
        self.members = members or {}


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how to read its answer."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Sequence[tuple[str, str]] = ()
    files: Files | None = None
    json: object = None
    headers: Mapping[str, str] = field(default_factory=dict)


def _json(response: httpx.Response) -> Json:
    return cast(Json, response.json())


def _nothing(response: httpx.Response) -> None:
    return None


def _content(response: httpx.Response) -> bytes:
    return response.content


def _check(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    try:
        members = response.json()
    except ValueError:
        members = {}
    if not isinstance(members, dict):
        members = {}
    wait = response.headers.get("retry-after", "")
    raise ProblemError(
        response.status_code,
        str(members.get("code", "unknown")),
        str(members.get("detail", response.text[:200] or response.reason_phrase)),
        float(wait) if wait.isdecimal() else None,
        members,
    )


def _files(part: str, clips: Audio | Sequence[Audio]) -> Files:
    one = isinstance(clips, bytes | str | Path)
    return [(part, _file(clip)) for clip in (cast(list[Audio], [clips]) if one else cast(Sequence[Audio], clips))]


def _file(clip: Audio) -> tuple[str, bytes]:
    return ("clip", clip) if isinstance(clip, bytes) else (Path(clip).name, Path(clip).read_bytes())


def _asked(adapter: str | Sequence[str], **options: object) -> list[tuple[str, str]]:
    references = [adapter] if isinstance(adapter, str) else list(adapter)
    return [("adapter", reference) for reference in references] + [
        (name, str(value).lower()) for name, value in options.items()
    ]


def _adapter(name: str, *rest: str | int) -> str:
    return "/".join(["/v1/adapters", *(quote(str(part), safe="@") for part in (name, *rest))])


class _Method(Generic[P, T]):
    """A method of both clients: calls what `build` makes of the arguments."""

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        self.build = build

    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: "AsyncClient", owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: "Client | AsyncClient", owner: type) -> Callable[P, T | Awaitable[T]]:
        @wraps(self.build)
        def method(*args: P.args, **kwargs: P.kwargs) -> T | Awaitable[T]:
            return client.run(self.build(*args, **kwargs))

        return method


class _Api:
    """The calls, each named as its method; arguments that name an adapter take `name`, `name@2`, `name@alias`."""

    @_Method
    @staticmethod
    def ready() -> Call[Json]:
        """Whether the service can answer; ProblemError `not_ready` before that."""
        return Call("GET", "/readyz", _json)

    @_Method
    @staticmethod
    def backbone() -> Call[Json]:
        return Call("GET", "/v1/backbone", _json)

    @_Method
    @staticmethod
    def classify(
        audio: Audio | Sequence[Audio], adapter: str | Sequence[str], top_k: int = 5, windows: bool = False
    ) -> Call[Json]:
        """Labels of one or more clips by one or more adapters."""
        params = _asked(adapter, top_k=top_k, windows=windows)
        return Call("POST", "/v1/classify", _json, params, files=_files("audio", audio))

    @_Method
    @staticmethod
    def embed(audio: Audio | Sequence[Audio], adapter: str | Sequence[str]) -> Call[Json]:
        """Voiceprints of one or more clips."""
        return Call("POST", "/v1/embed", _json, _asked(adapter), files=_files("audio", audio))

    @_Method
    @staticmethod
    def score(enrolment: Audio | Sequence[Audio], test: Audio, adapter: str) -> Call[Json]:
        """Whether the clip `test` is of the speaker of the clips `enrolment`."""
        files = _files("enrolment", enrolment) + _files("test", test)
        return Call("POST", "/v1/score", _json, _asked(adapter), files=files)

    @_Method
    @staticmethod
    def score_embeddings(enrolment: Sequence[Sequence[float]], test: Sequence[float], adapter: str) -> Call[Json]:
        """As `score`, of embeddings that `embed` answered."""
        body = {"enrolment": enrolment, "test": test}
        return Call("POST", "/v1/score", _json, _asked(adapter), json=body)

    @_Method
    @staticmethod
    def adapters() -> Call[list[Json]]:
        """Every adapter."""
        return Call("GET", "/v1/adapters", lambda response: cast(list[Json], _json(response)["adapters"]))

    @_Method
    @staticmethod
    def adapter(name: str) -> Call[Json]:
        return Call("GET", _adapter(name), _json)

    @_Method
    @staticmethod
    def history(name: str, limit: int = 100, after: str | None = None) -> Call[Json]:
        """Who changed the adapter, when and what, newest first; `after` is `next` of the answer before."""
        params = [("limit", str(limit))] + ([] if after is None else [("after", after)])
        return Call("GET", _adapter(name, "history"), _json, params)

    @_Method
    @staticmethod
    def push(
        bundle: str | Path, name: str | None = None, activate: bool = True, idempotency_key: str | None = None
    ) -> Call[Json]:
        """Uploads a bundle directory as its adapter's next version; `name` defaults to the bundle's own.

        A retry with the same `idempotency_key` is answered as the first try was.
        """
        directory = Path(bundle)
        config = (directory / "adapter_config.json").read_bytes()
        files: Files = [("config", ("adapter_config.json", config))]
        for part, file in (("weights", "adapter_model.safetensors"), ("card", "README.md")):
            if part == "weights" or (directory / file).exists():
                files.append((part, (file, (directory / file).read_bytes())))
        params = [("activate", str(activate).lower())]
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        path = _adapter(name or json.loads(config)["name"], "versions")
        return Call("POST", path, _json, params, files=files, headers=headers)

    @_Method
    @staticmethod
    def config(name: str, version: int) -> Call[bytes]:
        """The version's adapter_config.json, byte for byte."""
        return Call("GET", _adapter(name, "versions", version, "config"), _content)

    @_Method
    @staticmethod
    def weights(name: str, version: int) -> Call[bytes]:
        """The version's adapter_model.safetensors, byte for byte."""
        return Call("GET", _adapter(name, "versions", version, "weights"), _content)

    @_Method
    @staticmethod
    def activate(name: str, version: int, alias: str = "live") -> Call[Json]:
        """Points an alias at a version; `live` is what the bare name means."""
        return Call("PUT", _adapter(name, "aliases", alias), _json, json={"version": version})

    @_Method
    @staticmethod
    def residency(name: str, action: str) -> Call[Json]:
        """`load`, `unload`, `pin` or `unpin`."""
        return Call("POST", _adapter(name, action), _json)

    @_Method
    @staticmethod
    def delete(name: str, version: int | None = None, alias: str | None = None) -> Call[None]:
        """Deletes a version or an alias, or with neither the whole adapter."""
        rest = [("versions", version), ("aliases", alias)]
        given = [part for pair in rest if pair[1] is not None for part in pair if part is not None]
        return Call("DELETE", _adapter(name, *given), _nothing)


class Client(_Api):
    """Sync client.

    Args:
        key: one of the service's keys, where it asks for one.
        transport: instead of the network, for tests.
    """

    def __init__(self, url: str = DEFAULT_URL, key: str | None = None, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.http = httpx.Client(base_url=url, headers=_authorization(key), timeout=timeout)

    def run(self, call: Call[T]) -> T:
        return call.read(_check(self.http.request(**_arguments(call))))

    def close(self) -> None:
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_Api):
    """Async client; as `Client`, every method awaited."""

    def __init__(self, url: str = DEFAULT_URL, key: str | None = None, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.http = httpx.AsyncClient(base_url=url, headers=_authorization(key), timeout=timeout)

    async def run(self, call: Call[T]) -> T:
        return call.read(_check(await self.http.request(**_arguments(call))))

    async def close(self) -> None:
        await self.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _authorization(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _arguments(call: Call[Any]) -> dict[str, Any]:
    given = {"method": call.method, "url": call.path, "params": list(call.params) or None}
    return given | {"files": call.files, "json": call.json, "headers": dict(call.headers)}
