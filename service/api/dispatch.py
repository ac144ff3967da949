"""From a request's method and path to the function that answers it, its parameters, and the form of its answer.

Routes are declared with FastAPI, which describes them. What it would find out anew for each request, which parameters
a function takes and how they are validated, is found out here once: that is most of what a request cost.
"""

import inspect
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from re import Pattern
from typing import Any, Final, Literal

from fastapi import APIRouter
from fastapi.params import Depends, Header, Query
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response
from starlette.routing import compile_path

from service.api.auth import UNSERVED, Requirement
from service.api.call import Call, parse_query
from service.api.problems import describe, of_error, problem, shown
from service.errors import InvalidRequest, ServiceError

MAX_REMEMBERED: Final = 256  # bytes of a query
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

    def of(self, call: Call) -> object:
        """Its value in a request's path or head. Raises InvalidRequest."""
        return self.given(call.path_params[self.alias] if self.place == "path" else call.headers.get(self.alias))

    def given(self, given: str | list[str] | None) -> object:
        """The value that is given so, or not at all. Raises InvalidRequest: missing, twice, or not of its form."""
        if isinstance(given, list) and not self.is_list:
            if len(given) > 1:
                raise InvalidRequest(f"query.{self.alias} is given twice; this call takes one")
            given = given[0]
        if given is None:
            if self.default is inspect.Parameter.empty:
                raise InvalidRequest(f"{self.place}.{self.alias}: Field required")
            return self.default
        try:
            return self.form.validate_python(given)
        except ValidationError as error:
            faults = error.errors(include_url=False)
            raise InvalidRequest("; ".join(describe(one, f"{self.place}.{self.alias}") for one in faults)) from error


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """One method of one path: what it asks of its caller, what it takes and who answers it.

    Args:
        groups: parameters that the function takes as one, by its name there: a dataclass, and its fields.
        is_strict: whether its query has no parameters but these, each once unless it is a list.
        form: of what the function returns, unless that is a Response.
    """

    route: APIRoute
    requirement: Requirement
    takes_call: bool
    parameters: tuple[Parameter, ...]
    groups: Mapping[str, tuple[type, tuple[str, ...]]]
    is_strict: bool
    function: Callable[..., Awaitable[object]]
    form: TypeAdapter[Any]

    @classmethod
    def of(cls, route: APIRoute) -> "Served":
        """The route as FastAPI has it declared; its first dependency is what it requires of its caller."""
        declared = _declared(route.endpoint)
        returned, takes_call = declared.pop("return")[0], declared.pop("call", None) is not None
        groups: dict[str, tuple[type, tuple[str, ...]]] = {}
        parameters: list[Parameter] = []
        for name, (hint, default) in declared.items():
            kind, *markers = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
            fields = {name: (hint, default)}
            if any(isinstance(one, Depends) for one in markers):
                fields = _declared(kind)
                groups[name] = kind, tuple(fields)
            parameters += [_parameter(field, *one, route.path_format) for field, one in fields.items()]
        requirement = route.dependencies[0].dependency
        if not isinstance(requirement, Requirement):
            raise TypeError(f"{route.path} does not say what it requires of its caller")
        is_response = isinstance(returned, type) and issubclass(returned, Response)
        return cls(
            route,
            requirement,
            takes_call,
            tuple(parameters),
            groups,
            requirement.asks_for_key and not route.path.startswith(UNCHECKED),
            route.endpoint,
            TypeAdapter(Any if is_response else returned),
        )

    def begin(self, call: Call) -> Awaitable[object]:
        """What will answer. Raises InvalidRequest: the query is not what the function takes."""
        text = call.scope["query_string"]
        asked = _remembered(self, text) if len(text) <= MAX_REMEMBERED else self.read(call.query)
        values = {one.name: one.of(call) for one in self.parameters if one.place != "query"} | asked
        return self.function(call, **values) if self.takes_call else self.function(**values)

    def read(self, query: Mapping[str, list[str]]) -> dict[str, object]:
        """What the function is given of a query. Raises InvalidRequest."""
        taken = {one.alias: one for one in self.parameters if one.place == "query"}
        for name in query.keys() - taken.keys() if self.is_strict else ():
            told = f"; it takes {', '.join(sorted(taken))}" if taken else " and takes none"
            raise InvalidRequest(f"query.{shown(name)}: this call has no such parameter{told}")
        values = {one.name: one.given(query.get(alias)) for alias, one in taken.items()}
        for name, (kind, fields) in self.groups.items():
            values[name] = kind(**{field: values.pop(field) for field in fields})
        return values

    def response(self, result: object) -> Response:
        """The answer that the function's result stands for."""
        if isinstance(result, Response):
            return result
        status = self.route.status_code or 200
        if result is None:
            return Response(status_code=status)
        content = self.form.dump_json(result, exclude_none=self.route.response_model_exclude_none)
        return Response(content, status, media_type="application/json")


class Dispatch:
    """All routes."""

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        self._fixed: dict[str, dict[str, Served]] = {}
        self._patterns: list[tuple[Pattern[str], dict[str, Served]]] = []
        by_path: dict[str, dict[str, Served]] = {}
        for route in (route for router in routers for route in router.routes if isinstance(route, APIRoute)):
            by_path.setdefault(route.path, {}).update(dict.fromkeys(route.methods or (), Served.of(route)))
        for path, methods in by_path.items():
            if "{" in path:
                self._patterns.append((compile_path(path)[0], methods))
            else:
                self._fixed[path] = methods

    async def answer(self, call: Call) -> Response:
        """What the route's function answers, a ServiceError as the problem that it is. Raises any other error."""
        scope = call.scope
        fixed = self._fixed.get(scope["path"])
        methods, scope["path_params"] = (fixed, {}) if fixed else self._find(scope["path"])
        method = "GET" if scope["method"] == "HEAD" else scope["method"]  # a body is left out by the server
        served = methods.get(method)
        requirement = UNSERVED if served is None else served.requirement
        if served is not None:
            scope["route"] = served.route
        try:
            requirement.enter(call)
            try:
                if served is None:
                    return _unserved(call, methods)
                if not requirement.asks_for_key:
                    return served.response(await served.begin(call))
                with call.begin():
                    return served.response(await served.begin(call))
            finally:
                requirement.leave(call)
                call.reservation.release()
        except ServiceError as error:
            if call.lines is not None and call.lines.begun:
                return call.lines.broken(error)
            return of_error(error, scope["path"])

    def _find(self, path: str) -> tuple[Mapping[str, Served], dict[str, str]]:
        for pattern, methods in self._patterns:
            if found := pattern.match(path):
                return methods, found.groupdict()
        return {}, {}


@lru_cache(1024)
def _remembered(served: Served, text: bytes) -> dict[str, object]:
    """What a route's function is given of a short query: the same ones come again and again. Raises InvalidRequest."""
    return served.read(parse_query(text))


def _unserved(call: Call, methods: Mapping[str, Served]) -> Response:
    """The problem of a path that there is not, or that is not for this method."""
    path: str = call.scope["path"]
    detail = f"{call.method} {shown(path)} is not part of this service; see /docs"
    if not methods:
        return problem("not_found", detail, path=path)
    allowed = sorted({*methods, *(["HEAD"] if "GET" in methods else [])})
    return problem("method_not_allowed", detail, {"Allow": ", ".join(allowed)}, path=path)


def _declared(function: Callable[..., object]) -> dict[str, tuple[Any, object]]:
    """The hints and defaults of what a function or a dataclass takes; of a function, what it returns, too."""
    hints = typing.get_type_hints(function, include_extras=True)
    taken = inspect.signature(function).parameters
    return {name: (hint, taken[name].default if name in taken else None) for name, hint in hints.items()}


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
