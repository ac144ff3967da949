"""Errors as `application/problem+json` (RFC 9457): one table from codes to HTTP. Knows no routes."""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, Field
from starlette.responses import Response

from service.errors import ServiceError

MEDIA_TYPE: Final = "application/problem+json"
# Paths of the Open Inference Protocol and of Hugging Face's form, whose clients read {"error": "..."}.
ERROR_READERS: Final = ("/v2/", "/v1/huggingface/")
MAX_SHOWN: Final = 100  # characters of an offending value that a detail repeats

_log = logging.getLogger(__name__)


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    clip: int | None = Field(None, description="Index of the clip at fault.")
    adapter: str | None = Field(None, description="The adapter at fault.")
    at: float | None = Field(None, description="Where in a recording it was, seconds.")
    error: str | None = Field(None, description="The detail again, under /v2/ and /v1/huggingface/.")


class Kind(NamedTuple):
    """What a code means in HTTP."""

    status: int
    title: str


KINDS: Final[Mapping[str, Kind]] = {
    "invalid_request": Kind(422, "The request is not valid"),
    "bad_audio": Kind(422, "The audio could not be read"),
    "audio_too_long": Kind(413, "The audio is too long"),
    "payload_too_large": Kind(413, "The request body is too large"),
    "not_acceptable": Kind(406, "The answer has no such form"),
    "unknown_adapter": Kind(404, "No adapter has this name"),
    "unknown_version": Kind(404, "The adapter has no such version or alias"),
    "wrong_task": Kind(409, "The adapter is for another task"),
    "backbone_mismatch": Kind(409, "The adapter is for another backbone"),
    "invalid_bundle": Kind(422, "The bundle is not valid"),
    "unauthorized": Kind(401, "A key is needed"),
    "forbidden": Kind(403, "This is not allowed"),
    "version_is_live": Kind(409, "The version is live"),
    "no_free_slot": Kind(409, "No slot on the device is free"),
    "adapter_failed": Kind(503, "The adapter could not be used"),
    "overloaded": Kind(429, "The service is busy"),
    "rate_limited": Kind(429, "Too many requests"),
    "not_ready": Kind(503, "The service is not ready"),
    "deadline_exceeded": Kind(504, "The request took too long"),
    "registry_unavailable": Kind(503, "Adapters cannot be changed now"),
    "storage_full": Kind(507, "No space is left"),
    "unknown_speaker": Kind(404, "No speaker has this id"),
    "unknown_job": Kind(404, "No job has this id"),
    "speaker_opted_out": Kind(409, "The speaker has opted out"),
    "consent_required": Kind(409, "The speaker's consent is not recorded"),
    "conflict": Kind(409, "Another change came between"),
    "internal": Kind(500, "Internal error"),
    # Of HTTP itself, outside the service's own errors:
    "not_found": Kind(404, "No such path"),
    "method_not_allowed": Kind(405, "The path does not take this method"),
    "bad_http": Kind(400, "This is not HTTP"),
    "range_not_satisfiable": Kind(416, "The file has no such bytes"),
    "request_too_slow": Kind(408, "The request did not arrive in time"),
    "head_too_large": Kind(431, "The request's head is too large"),
}
RETRY_AFTER: Final[Mapping[str, float]] = {"overloaded": 1.0, "rate_limited": 1.0}  # seconds, where none is known


def problem(
    code: str, detail: str, headers: Mapping[str, str] | None = None, *, path: str = "", **members: str | float | None
) -> Response:
    """The answer for `code`; `members` that are not None become extra members of the document.

    Args:
        path: of the request; clients of the Open Inference Protocol and of Hugging Face read the detail as `error`.
    """
    members |= {"error": detail if path.startswith(ERROR_READERS) else None}
    content = json.dumps(_document(code, detail, **members), ensure_ascii=False).encode("utf-8", "replace")
    return Response(content, KINDS[code].status, headers, media_type=MEDIA_TYPE)


def told(error: ServiceError) -> dict[str, Any]:
    """The problem that a typed error is, where it is part of a longer answer."""
    return _document(error.code, error.detail, clip=error.clip, adapter=error.adapter, at=error.at)


def _document(code: str, detail: str, **members: Any) -> dict[str, Any]:
    kind = KINDS[code]
    body = {"type": "about:blank", "title": kind.title, "status": kind.status, "code": code, "detail": detail}
    return body | {name: value for name, value in members.items() if value is not None}


def of_error(error: ServiceError, path: str = "") -> Response:
    """The answer for a typed error, with the clip and the adapter it names and the headers its code asks for."""
    headers = {}
    wait = error.retry_after if error.retry_after is not None else RETRY_AFTER.get(error.code)
    if wait is not None:
        headers["Retry-After"] = str(max(1, math.ceil(wait)))
    if error.code == "unauthorized":
        headers["WWW-Authenticate"] = 'Bearer realm="ipet"'
    return problem(error.code, error.detail, headers, path=path, clip=error.clip, adapter=error.adapter, at=error.at)


def of_unexpected(error: Exception, path: str = "") -> Response:
    """The answer for an error nobody foresaw: logged with its trace, told to the caller without it."""
    _log.error("unexpected error: %s", type(error).__name__, exc_info=error)
    return problem("internal", "the service failed on this request; its log says why under the X-Request-Id", path=path)


def describe(item: Mapping[str, object], root: str = "") -> str:
    """One of pydantic's errors in words: where, what, and the value it got.

    Args:
        root: the first member of the location, where pydantic leaves it out.
    """
    location = item.get("loc")
    path = [str(part) for part in location] if isinstance(location, tuple) else []
    where = ".".join([root, *path] if root else path) or "request"
    value = item.get("input")
    told = "" if isinstance(value, dict | list | bytes) or value is None else f", got {shown(repr(value))}"
    return f"{where}: {item.get('msg')}{told}"


def shown(text: str) -> str:
    """What a detail repeats of a value."""
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
