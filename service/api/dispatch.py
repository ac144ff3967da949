"""From a request's method and path to the function that answers it, and from what that returns to the answer.

Routes are declared with FastAPI, which describes them. What it would find out anew for each request, which parameters
a function takes and how they are validated, is found out here once: that is most of what a request cost.
"""

import inspect
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from re import Pattern
from typing import Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.params import Header, Query
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from service.api.auth import Requirement
from service.api.problems import describe, of_error, problem, shown
from service.errors import InvalidRequest, ServiceError

MAX_PARAMETERS: Final = 256  # in a query, beyond the adapters that a request may ask
UNCHECKED: Final = "/v1/huggingface/"  # paths whose clients send more than there is


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a route's function.

    Args:
        name: of the function's parameter; `alias` is the request's.
        default: `inspect.Parameter.empty` where it must be there.
    """

    name: str
    alias: str
    place: Literal["path", "query", "header"]
    is_list: bool
    default: object
    form: TypeAdapter[Any]

    def of(self, request: Request) -> object:
        """Its value in a request. Raises InvalidRequest: missing, or not of its form."""
        given: object = None
        match self.place:
            case "path":
                given = request.path_params[self.alias]
            case "header":
                given = request.headers.get(self.alias)
            case "query" if self.is_list:
                given = request.query_params.getlist(self.alias) or None
            case "query":
                given = request.query_params.get(self.alias)
        if given is None:
            if self.default is inspect.Parameter.empty:
                raise InvalidRequest(f"{self.place}.{self.alias}: Field required")
            return self.default
        try:
            return self.form.validate_python(given)
        except ValidationError as error:
            faults = error.errors(include_url=False)
            raise InvalidRequest("; ".join(describe(one, f"{self.place}.{self.alias}") for one in faults)) from error


@dataclass(frozen=True, slots=True)
class Served:
    """One method of one path: what it asks of its caller, what it takes and who answers it.

    Args:
        is_strict: whether its query has no parameters but these, each once unless it is a list.
        form: of what the function returns, unless that is a Response.
    """

    route: APIRoute
    requirement: Requirement
    takes_request: bool
    parameters: tuple[Parameter, ...]
    is_strict: bool
    function: Callable[..., Awaitable[object]]
    form: TypeAdapter[Any]

    @classmethod
    def of(cls, route: APIRoute) -> "Served":
        """The route as FastAPI has it declared; its first dependency is what it requires of its caller."""
        hints = typing.get_type_hints(route.endpoint, include_extras=True)
        declared = inspect.signature(route.endpoint).parameters
        parameters = tuple(
            _parameter(name, hints[name], one.default, route.path_format)
            for name, one in declared.items()
            if name != "request"
        )
        requirement = route.dependencies[0].dependency
        if not isinstance(requirement, Requirement):
            raise TypeError(f"{route.path} does not say what it requires of its caller")
        returned = hints["return"]
        is_response = isinstance(returned, type) and issubclass(returned, Response)
        return cls(
            route,
            requirement,
            "request" in declared,
            parameters,
            requirement.asks_for_key and not route.path.startswith(UNCHECKED),
            route.endpoint,
            TypeAdapter(Any if is_response else returned),
        )

    async def answer(self, request: Request) -> Response:
        """What the function answers. Raises what it, or its requirement, raises."""
        self.requirement.enter(request)
        try:
            if request.query_params and self.is_strict:
                self._check_query(request)
            values = {one.name: one.of(request) for one in self.parameters}
            return self._response(await self.function(*((request,) if self.takes_request else ()), **values))
        finally:
            self.requirement.leave(request)

    def _check_query(self, request: Request) -> None:
        known = {one.alias: one for one in self.parameters if one.place == "query"}
        for name in request.query_params:
            if name not in known:
                told = f"; it takes {', '.join(sorted(known))}" if known else " and takes none"
                raise InvalidRequest(f"query.{shown(name)}: this call has no such parameter{told}")
            if not known[name].is_list and len(request.query_params.getlist(name)) > 1:
                raise InvalidRequest(f"query.{name} is given twice; this call takes one")

    def _response(self, result: object) -> Response:
        if isinstance(result, Response):
            return result
        status = self.route.status_code or 200
        if result is None:
            return Response(status_code=status)
        content = self.form.dump_json(result, exclude_none=self.route.response_model_exclude_none)
        return Response(content, status, media_type="application/json")


@dataclass(slots=True)
class Dispatch:
    """ASGI application of all routes; errors that are no ServiceError pass through."""

    most: int  # parameters in one query
    _fixed: dict[str, dict[str, Served]] = field(default_factory=dict)
    _patterns: list[tuple[Pattern[str], dict[str, Served]]] = field(default_factory=list)

    @classmethod
    def of(cls, routers: Iterable[APIRouter], max_adapters: int) -> "Dispatch":
        dispatch, by_path = cls(MAX_PARAMETERS + max_adapters), dict[str, dict[str, Served]]()
        for route in (route for router in routers for route in router.routes if isinstance(route, APIRoute)):
            by_path.setdefault(route.path, {}).update(dict.fromkeys(route.methods or (), Served.of(route)))
        for path, methods in by_path.items():
            if "{" in path:
                dispatch._patterns.append((compile_path(path)[0], methods))
            else:
                dispatch._fixed[path] = methods
        return dispatch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        try:
            response = await self._answer(scope, receive, path)
        except ServiceError as error:
            response = of_error(error, path)
        except HTTPException as error:  # of Starlette's own answers
            response = problem("invalid_request", str(error.detail), error.headers, path=path)
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, path: str) -> Response:
        methods, scope["path_params"] = self._find(path)
        method: str = scope["method"]
        detail = f"{method} {shown(path)} is not part of this service; see /docs"
        if not methods:
            return problem("not_found", detail, path=path)
        served = methods.get("GET" if method == "HEAD" else method)  # whose body the server leaves out
        if served is None:
            allowed = sorted({*methods, *(["HEAD"] if "GET" in methods else [])})
            return problem("method_not_allowed", detail, {"Allow": ", ".join(allowed)}, path=path)
        scope["route"] = served.route
        if scope["query_string"].count(b"&") >= self.most:
            raise InvalidRequest(f"a query has at most {self.most} parameters")
        return await served.answer(Request(scope, receive))

    def _find(self, path: str) -> tuple[Mapping[str, Served], dict[str, str]]:
        if methods := self._fixed.get(path):
            return methods, {}
        for pattern, methods in self._patterns:
            if found := pattern.match(path):
                return methods, found.groupdict()
        return {}, {}


def _parameter(name: str, hint: Any, default: object, path: str) -> Parameter:
    markers = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
    bare = typing.get_args(hint)[0] if markers else hint
    marker = next((one for one in markers if isinstance(one, Query | Header)), None)
    if marker is None and f"{{{name}}}" not in path:
        raise TypeError(f"{path}: where {name} comes from is not declared")
    place: Literal["path", "query", "header"]
    place = "path" if marker is None else "header" if isinstance(marker, Header) else "query"
    alias = marker.alias if marker is not None else None
    alias = alias or (name.replace("_", "-") if place == "header" else name)
    return Parameter(name, alias, place, typing.get_origin(bare) in (list, tuple), default, TypeAdapter(hint))
