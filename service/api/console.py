"""The pages: console at `/`, API docs at `/docs`, and the API's description. No file comes from elsewhere."""

import asyncio
import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from fastapi import APIRouter, Depends
from starlette.responses import Response

from service.api.auth import OPEN
from service.api.call import Call
from service.api.problems import problem

router: Final = APIRouter(tags=["console"])

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_MICROPHONE: Final = "camera=(), display-capture=(), geolocation=(), microphone=(self), payment=(), usb=()"


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the pages, as it is and as gzip where that is shorter."""

    content: bytes
    zipped: bytes | None
    kind: str
    tag: str

    @classmethod
    def read(cls, path: Traversable, kind: str) -> "_File":
        content = path.read_bytes()
        zipped = None if kind.startswith("audio/") else gzip.compress(content, mtime=0)
        return cls(content, zipped, kind, hashlib.sha256(content).hexdigest()[:16])


def _walk(folder: Traversable, above: str = "") -> Iterator[tuple[str, _File]]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path, f"{above}{path.name}/")
        elif kind := _TYPES.get(path.name.rpartition(".")[2]):
            yield above + path.name, _File.read(path, kind)


_FILES: Final = dict(_walk(files("service") / "console"))


@router.get("/", dependencies=[Depends(OPEN)], include_in_schema=False)
async def console(call: Call) -> Response:
    """The one page that may ask for the microphone."""
    answer = _file(call, "index.html")
    answer.headers["Permissions-Policy"] = _MICROPHONE
    return answer


@router.get("/docs", dependencies=[Depends(OPEN)], include_in_schema=False)
async def docs(call: Call) -> Response:
    return _file(call, "docs.html")


@router.get("/console/{name:path}", dependencies=[Depends(OPEN)], include_in_schema=False)
async def asset(call: Call, name: str) -> Response:
    return _file(call, name)


@router.get("/favicon.ico", dependencies=[Depends(OPEN)], include_in_schema=False)
async def favicon(call: Call) -> Response:
    return _file(call, "icon.svg")


@router.get("/openapi.json", dependencies=[Depends(OPEN)], include_in_schema=False)
async def openapi(call: Call) -> Response:
    return Response(await asyncio.to_thread(call.app.describe), media_type="application/json")


def _file(call: Call, name: str) -> Response:
    file = _FILES.get(name)
    if file is None:
        return problem("not_found", f"there is no page {name[:100]!r}")
    zips = file.zipped is not None and "gzip" in call.headers.get("accept-encoding", "")
    tag = f'"{file.tag}-gzip"' if zips else f'"{file.tag}"'
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "ETag": tag, "Vary": "Accept-Encoding"}
    if tag in call.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    headers |= {"Content-Type": file.kind} | ({"Content-Encoding": "gzip"} if zips else {})
    return Response(file.zipped if zips else file.content, headers=headers)
