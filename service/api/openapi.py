"""The description of the API, /openapi.json: bodies, answers and errors that FastAPI cannot see by itself."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.api.problems import KINDS, MEDIA_TYPE, Problem
from service.version import service_version

DESCRIPTION: Final = """\
One frozen audio backbone, many IPET adapters on it, a different one for every row of a batch.

Audio arrives either as the raw request body (any or no Content-Type) or as multipart part(s) `audio`: wav, flac,
mp3, ogg (vorbis, opus), m4a/aac, webm/opus, any rate and channel count. An adapter is named `name` (its live
version), `name@2` (a version) or `name@canary` (an alias). Errors are `application/problem+json` with a stable
`code`. `X-Request-Id` names a request in the service's log; `X-Request-Timeout-Ms` sets an earlier deadline."""

BYTES: Final = {"type": "string", "format": "binary"}
CLIPS: Final = {"type": "array", "items": BYTES, "minItems": 1}
_models: Final[dict[str, type[BaseModel]]] = {"Problem": Problem}  # that the description refers to by name


def body(
    content: Mapping[str, type[BaseModel] | dict[str, Any]], description: str = "", *, required: bool = True
) -> dict[str, Any]:
    """OpenAPI of a body that its route reads itself: a model or a schema for each media type."""
    schemas: dict[str, Any] = {}
    for media_type, one in content.items():
        if isinstance(one, type):
            _models[one.__name__] = one
            one = {"$ref": f"#/components/schemas/{one.__name__}"}
        schemas[media_type] = {"schema": one}
    told = {"description": description} if description else {}
    return {"requestBody": {"required": required, "content": schemas} | told}


def form(*required: str, **parts: dict[str, Any]) -> dict[str, Any]:
    """The schema of a multipart body."""
    return {"type": "object", "properties": parts, "required": list(required)}


AUDIO_BODY: Final = body(
    {"application/octet-stream": BYTES, "audio/*": BYTES, "multipart/form-data": form("audio", audio=CLIPS)},
    "One clip as the raw body, or one or more as multipart parts named `audio`.",
)


def errors(*codes: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses for a route that may answer with `codes`."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in dict.fromkeys(codes):
        status, title = KINDS[code]
        response = responses.setdefault(
            status, {"description": "", "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
        )
        line = f"`{code}`: {title}."
        response["description"] = f"{response['description']} {line}".strip()
        if status == 429:
            wait = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
            response["headers"] = response.get("headers", {}) | wait | (_LIMITS if code == "rate_limited" else {})
    return responses


_LIMITS: Final = {
    name: {"description": f"{text}, as in draft-ietf-httpapi-ratelimit-headers-11.", "schema": {"type": "string"}}
    for name, text in {"RateLimit-Policy": "The key's limits", "RateLimit": "What is left of them"}.items()
}


def describe(routers: Iterable[APIRouter]) -> dict[str, Any]:
    """The whole description."""
    app = FastAPI(generate_unique_id_function=lambda route: route.name)  # all routes live in one namespace
    for router in routers:
        app.include_router(router)
    schema = get_openapi(
        title=TITLE,
        version=VERSION,
        description=DESCRIPTION,
        routes=app.routes,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model in _models.values():
        described = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= described.pop("$defs", {}) | {model.__name__: described}
    return schema


TITLE: Final = "ipet-serve"
VERSION: Final = service_version()
