"""The description of the API, /openapi.json: bodies, answers and errors that FastAPI cannot see by itself."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from service.api.open_inference import InferRequest
from service.api.problems import KINDS, MEDIA_TYPE
from service.api.schemas import AliasRequest, HubRequest, Problem, ScoreRequest
from service.api.speakers import SpeakerRequest

DESCRIPTION: Final = """\
One frozen audio backbone, many IPET adapters on it, a different one for every row of a batch.

Audio arrives either as the raw request body (any or no Content-Type) or as multipart part(s) `audio`: wav, flac,
mp3, ogg (vorbis, opus), m4a/aac, webm/opus, any rate and channel count. An adapter is named `name` (its live
version), `name@2` (a version) or `name@canary` (an alias). Errors are `application/problem+json` with a stable
`code`. `X-Request-Id` names a request in the service's log; `X-Request-Timeout-Ms` sets an earlier deadline."""

_BYTES: Final = {"type": "string", "format": "binary"}
_CLIPS: Final = {"type": "array", "items": _BYTES, "minItems": 1}

AUDIO_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "One clip as the raw body, or one or more as multipart parts named `audio`.",
        "content": {
            "application/octet-stream": {"schema": _BYTES},
            "audio/*": {"schema": _BYTES},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"audio": _CLIPS}, "required": ["audio"]}
            },
        },
    }
}
TRIAL_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "Clips to enrol and one to test, or embeddings of such clips.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"enrolment": _CLIPS, "test": _BYTES},
                    "required": ["enrolment", "test"],
                }
            },
            "application/json": {"schema": {"$ref": "#/components/schemas/ScoreRequest"}},
        },
    }
}
BUNDLE_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "adapter_config.json, adapter_model.safetensors and optionally README.md.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"config": _BYTES, "weights": _BYTES, "card": _BYTES},
                    "required": ["config", "weights"],
                }
            }
        },
    }
}
SPEAKER_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": False,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/SpeakerRequest"}}},
    }
}
ALIAS_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/AliasRequest"}}},
    }
}
HUB_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "One clip as the raw body, or in base64 with parameters, as JSON.",
        "content": {
            "audio/*": {"schema": _BYTES},
            "application/octet-stream": {"schema": _BYTES},
            "application/json": {"schema": {"$ref": "#/components/schemas/HubRequest"}},
        },
    }
}
INFER_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "JSON; with `Inference-Header-Content-Length` so many bytes of it, then the tensor's. gzip or "
        "deflate, where Content-Encoding says so.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}},
    }
}


def errors(*codes: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses for a route that may answer with `codes`; where a key may be forbidden it has limits too."""
    if "forbidden" in codes:
        codes = (*codes, "rate_limited")
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, title = KINDS[code]
        response = responses.setdefault(status, {"description": "", "content": {MEDIA_TYPE: _problem()}})
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


def _problem() -> dict[str, Any]:
    return {"schema": {"$ref": "#/components/schemas/Problem"}}


def install(app: FastAPI) -> None:
    """Makes `app.openapi()` answer the whole description, built once."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=DESCRIPTION,
                routes=app.routes,
                license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
            )
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            for model in (Problem, ScoreRequest, SpeakerRequest, AliasRequest, HubRequest, InferRequest):
                described = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= described.pop("$defs", {}) | {model.__name__: described}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]


def operation_id(route: APIRoute) -> str:
    """A route's function name: short, stable, and unique as all routes live in one namespace."""
    return route.name
