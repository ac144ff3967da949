"""Client of the REST API, sync and async. Knows httpx and the contract, and nothing else of the service.

    with Client("http://127.0.0.1:8000") as client:
        client.classify("dog.wav", adapter="sound-events")["results"][0]["labels"]

Both clients have the same methods, as both run the same calls.
"""

import asyncio
import inspect
import random
import time
from collections.abc import Awaitable, Callable
from functools import update_wrapper
from types import MethodType, TracebackType
from typing import (
    Any,
    ClassVar,
    Final,
    Generic,
    NoReturn,
    ParamSpec,
    Self,
    TypeVar,
    get_args,
    get_type_hints,
    overload,
)

import httpx

from service import client_calls as calls
from service.client_calls import Audio, Call, Json

__all__ = ["AsyncClient", "Audio", "Client", "ClientError", "ConnectionFailed", "Json", "ProblemError", "TimedOut"]

DEFAULT_URL: Final = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT: Final = 90.0  # seconds; the service's own deadline is 60
DEFAULT_RETRIES: Final = 2
FIRST_PAUSE: Final = 0.25  # seconds before a second try where the service names none, doubled for each one after
LATER: Final = ("not_ready", "registry_unavailable")  # 503 that passes by itself

P = ParamSpec("P")
T = TypeVar("T")


class ClientError(Exception):
    """Anything that keeps a call from being answered as it should be."""


class ConnectionFailed(ClientError):
    """Nobody listens at the URL, or the connection broke; `sent` is whether the request was on its way by then."""

    def __init__(self, detail: str, sent: bool = False) -> None:
        super().__init__(detail)
        self.sent = sent


class TimedOut(ClientError):
    """No answer within the client's `timeout`; the service may still be at it."""


class ProblemError(ClientError):
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


class _Method(Generic[P, T]):
    """A method of both clients: runs the call that `build` makes of the arguments."""

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        self.build = build
        answered = get_type_hints(build)["return"]
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        signature = inspect.signature(build)
        parameters = [own, *signature.parameters.values()]
        self.signature = signature.replace(parameters=parameters, return_annotation=get_args(answered)[0])

    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: "AsyncClient", owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: "Client | AsyncClient | None", owner: type) -> Callable[..., Any]:
        def method(self: "Client | AsyncClient", *args: P.args, **kwargs: P.kwargs) -> Any:
            return self.run(build(*args, **kwargs))

        build = self.build
        update_wrapper(method, build).__signature__ = self.signature  # type: ignore[attr-defined]
        return method if client is None else MethodType(method, client)


class _Api:
    """The calls, each named as its method; arguments that name an adapter take `name`, `name@2`, `name@alias`."""

    ready = _Method(calls.ready)
    backbone = _Method(calls.backbone)
    classify = _Method(calls.classify)
    events = _Method(calls.events)
    embed = _Method(calls.embed)
    score = _Method(calls.score)
    score_embeddings = _Method(calls.score_embeddings)
    adapters = _Method(calls.adapters)
    adapter = _Method(calls.adapter)
    history = _Method(calls.history)
    push = _Method(calls.push)
    config = _Method(calls.config)
    weights = _Method(calls.weights)
    activate = _Method(calls.activate)
    residency = _Method(calls.residency)
    delete = _Method(calls.delete)
    speakers = _Method(calls.speakers)
    speaker = _Method(calls.speaker)
    put_speaker = _Method(calls.put_speaker)
    enrol = _Method(calls.enrol)
    verify = _Method(calls.verify)
    identify = _Method(calls.identify)
    opt_out = _Method(calls.opt_out)
    opt_in = _Method(calls.opt_in)
    export_speaker = _Method(calls.export_speaker)
    delete_speaker = _Method(calls.delete_speaker)
    add_job = _Method(calls.add_job)
    enrol_many = _Method(calls.enrol_many)
    jobs = _Method(calls.jobs)
    job = _Method(calls.job)
    job_result = _Method(calls.job_result)
    delete_job = _Method(calls.delete_job)

    _transport: ClassVar[Callable[..., Any]]
    http: Any

    def __init__(
        self,
        url: str = DEFAULT_URL,
        key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retries: int = DEFAULT_RETRIES,
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = self._transport(base_url=url, headers=headers, timeout=timeout)
        self.timeout = timeout
        self.retries = retries

    def _timeout(self, call: Call[Any]) -> httpx.Timeout:
        return httpx.Timeout(self.timeout, read=None, write=None) if call.endless else httpx.Timeout(self.timeout)

    def _pause(self, call: Call[Any], error: ProblemError | httpx.HTTPError, tried: int) -> float:
        """Seconds before the next try; raises what the caller is to see where there is none."""
        pause = _pause(call, error, tried, self.timeout) if tried < self.retries else None
        return _reraise(error, self.timeout) if pause is None else pause


class Client(_Api):
    """Sync client; raises ClientError: ProblemError, ConnectionFailed or TimedOut.

    Args:
        key: one of the service's keys, where it asks for one.
        timeout: seconds, for connecting, sending and each wait for the answer. A longer Retry-After is not waited for.
        retries: tries after the first one, where the service says to come back (429, not ready) or the connection
            breaks and the call may be repeated; after what Retry-After asks for, else 0.25 s, doubled each time.
    """

    http: httpx.Client
    _transport = httpx.Client

    def run(self, call: Call[T]) -> T:
        content = self._content(call)
        answer, following = call.read(content), call.then(content)
        while following is not None:
            content = self._content(following)
            answer += following.read(content)  # type: ignore[operator]  # a list, as it has pages
            following = following.then(content)
        return answer

    def _content(self, call: Call[Any]) -> bytes:
        tried = 0
        while True:
            try:
                with call.arguments() as given:
                    return _checked(self.http.request(**given, timeout=self._timeout(call)))
            except (ProblemError, httpx.HTTPError) as error:
                pause = self._pause(call, error, tried)
            tried += 1
            time.sleep(pause)

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

    http: httpx.AsyncClient
    _transport = httpx.AsyncClient

    async def run(self, call: Call[T]) -> T:
        content = await self._content(call)
        answer, following = call.read(content), call.then(content)
        while following is not None:
            content = await self._content(following)
            answer += following.read(content)  # type: ignore[operator]  # a list, as it has pages
            following = following.then(content)
        return answer

    async def _content(self, call: Call[Any]) -> bytes:
        tried = 0
        while True:
            try:
                with call.arguments() as given:
                    return _checked(await self.http.request(**given, timeout=self._timeout(call)))
            except (ProblemError, httpx.HTTPError) as error:
                pause = self._pause(call, error, tried)
            tried += 1
            await asyncio.sleep(pause)

    async def close(self) -> None:
        await self.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _checked(response: httpx.Response) -> bytes:
    """The body of an answer; raises ProblemError for a refusal."""
    if response.is_success:
        return response.content
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


def _pause(call: Call[Any], error: ProblemError | httpx.HTTPError, tried: int, longest: float) -> float | None:
    """Seconds before the next try; None where another would be no use, or could do the call twice."""
    pause: float = FIRST_PAUSE * 2**tried * random.uniform(1.0, 1.5)
    if not call.patient:
        return None
    if isinstance(error, ProblemError):
        if error.status != 429 and error.code not in LATER:
            return None
        asked = pause if error.retry_after is None else error.retry_after * random.uniform(1.0, 1.05)
        return asked if asked <= longest else None
    if isinstance(error, httpx.ConnectError):
        return pause  # nothing was sent
    return pause if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError) and call.repeatable else None


def _reraise(error: ProblemError | httpx.HTTPError, timeout: float) -> NoReturn:
    """Raises what the caller is to see."""
    if isinstance(error, ProblemError):
        raise error
    where = str(error.request.url.copy_with(path="/", query=None)).rstrip("/")
    if isinstance(error, httpx.TimeoutException):
        raise TimedOut(f"{where} did not answer within {timeout:g} s") from error
    sent = not isinstance(error, httpx.ConnectError)
    raise ConnectionFailed(f"no answer from {where}: {error or type(error).__name__}", sent) from error
