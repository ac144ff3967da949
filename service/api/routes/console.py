"""The pages: console at `/`, API docs at `/docs`, and the API's description. No file comes from elsewhere."""

import json
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.api.auth import OPEN
from service.api.problems import problem

router: Final = APIRouter(tags=["console"])

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES: Final = {
    file.name: (file.read_bytes(), kind)
    for file in (files("service") / "console").iterdir()
    if (kind := _TYPES.get("." + file.name.rpartition(".")[2]))
}


@router.get("/", dependencies=[Depends(OPEN)], include_in_schema=False)
async def console() -> Response:
    return _file("index.html")


@router.get("/docs", dependencies=[Depends(OPEN)], include_in_schema=False)
async def docs() -> Response:
    return _file("docs.html")


@router.get("/console/{name}", dependencies=[Depends(OPEN)], include_in_schema=False)
async def asset(name: str) -> Response:
    return _file(name)


@router.get("/favicon.ico", dependencies=[Depends(OPEN)], include_in_schema=False)
async def favicon() -> Response:
    return _file("icon.svg")


@router.get("/openapi.json", dependencies=[Depends(OPEN)], include_in_schema=False)
async def openapi(request: Request) -> Response:
    return Response(json.dumps(request.app.openapi()), media_type="application/json")


def _file(name: str) -> Response:
    if name not in _FILES:
        return problem("not_found", f"there is no page {name[:100]!r}")
    content, kind = _FILES[name]
    headers = {"Content-Type": kind, "Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return Response(content, headers=headers)
