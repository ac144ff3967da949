"""The Open Inference Protocol, version 2: an adapter is a model. Its clients, routers and gateways need no other."""

import asyncio
import typing
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel
from starlette.responses import Response

from service.api.auth import OPEN, READ, asks
from service.api.bodies import inflate
from service.api.call import Call
from service.api.inference import tensors
from service.api.inference.asking import ROUTE, computed, filled, infer, json_answer
from service.api.long_json import set_aside
from service.api.openapi import TITLE, VERSION, body, errors
from service.errors import AdapterFailed, PayloadTooLarge
from service.registry.store import AdapterVersion

T = TypeVar("T")

MAX_JSON_BYTES: Final = 16 * 2**20

EXTENSIONS: Final = (
    *("binary_tensor_data", "classification", "model_configuration", "model_repository", "parameters", "statistics"),
)

router: Final = APIRouter(tags=["open inference protocol"])

Model = Annotated[str, Path(description="`name` (its live version), `name@2` or `name@alias`.")]
Version = Annotated[str, Path(description="A version, or an alias, of the model.")]
_READ: Final = asks(READ, "unknown_adapter", "unknown_version", "adapter_failed", "overloaded")
_INFER_BODY: Final = body(
    {"application/json": tensors.InferRequest},
    "JSON; with `Inference-Header-Content-Length` so many bytes of it, then the tensor's. gzip or deflate, where "
    "Content-Encoding says so.",
)
_INFER: Final[dict[str, Any]] = ROUTE | {"response_model": tensors.InferAnswer, "openapi_extra": _INFER_BODY}


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str] = []


class ServerLive(BaseModel):
    live: bool


class ServerReady(BaseModel):
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[tensors.TensorMetadata]
    outputs: list[tensors.TensorMetadata]


@router.get("/v2/health/live", dependencies=[Depends(OPEN)])
async def server_live() -> ServerLive:
    """Answers as soon as the process listens."""
    return ServerLive(live=True)


@router.get("/v2/health/ready", dependencies=[Depends(OPEN)], responses=errors("not_ready"))
async def server_ready(call: Call) -> ServerReady:
    """As /readyz: 200 once the backbone is loaded and warm, 503 again while the service stops or its device hangs."""
    call.context.check_ready()
    return ServerReady(ready=True)


@router.get("/v2", dependencies=[Depends(OPEN)])
async def server_metadata() -> ServerMetadata:
    """Name and version of the service."""
    return ServerMetadata(name=TITLE, version=VERSION, extensions=list(EXTENSIONS))


def of_model(
    method: str, path: str, on: APIRouter = router, **declared: Any
) -> Callable[[Callable[[Call, str, str], Awaitable[T]]], None]:
    """Declares a route of an adapter, and the same of one version of it.

    What answers takes the request, the adapter's name in the path, and `name@version` of what is asked.
    """

    def declare(answer: Callable[[Call, str, str], Awaitable[T]]) -> None:
        async def live(call: Call, model: Model) -> T:
            return await answer(call, model, model)

        async def one(call: Call, model: Model, version: Version) -> T:
            return await answer(call, model, f"{model}@{version}")

        whole, name = f"/v2/models/{{model}}{path}", answer.__name__
        versioned = f"/v2/models/{{model}}/versions/{{version}}{path}", name.replace("model", "model_version")
        for endpoint, (where, named) in ((live, (whole, name)), (one, versioned)):
            endpoint.__annotations__["return"] = typing.get_type_hints(answer)["return"]
            on.add_api_route(where, endpoint, methods=[method], name=named, description=answer.__doc__, **declared)

    return declare


@of_model("GET", "", **_READ)
async def model_metadata(call: Call, model: str, reference: str) -> ModelMetadata:
    """The tensors that an adapter takes and answers."""
    registry = call.runtime.registry
    version = registry.resolve(reference)
    return ModelMetadata(
        name=model,
        versions=[str(one.version) for one in registry.record(version.name).versions],
        platform="ipet",
        inputs=[tensors.INPUTS],
        outputs=tensors.described(version.manifest),
    )


@of_model("GET", "/ready", **_READ)
async def model_ready(call: Call, model: str, reference: str) -> ModelReady:
    """Whether an adapter can be asked; one that is not on the device yet is loaded when it is."""
    registry = call.runtime.registry
    version = registry.resolve(reference)
    fault = await call.context.disk.once(registry.problem, version)
    if fault := fault or call.runtime.engine.device.residences([version])[0].failure:
        raise AdapterFailed(fault, adapter=reference)
    return ModelReady(name=model, ready=True)


@of_model("POST", "/infer", **_INFER)
async def model_infer(call: Call, model: str, reference: str) -> Response:
    """Scores of every label, or embeddings, of one or more clips by one adapter."""
    version = call.runtime.registry.resolve(reference)
    async with call.runtime.engine.admit([version]) as place:
        asked, encoded = await _read(call, version)
        _, outputs = await infer(call, place, encoded)
    told = [of_clip[0] for of_clip in outputs]
    content, json_length = await computed(outputs, lambda: tensors.answer(asked, model, told))
    if json_length is None:
        return json_answer(content)
    return Response(content, media_type="application/octet-stream", headers={tensors.JSON_LENGTH: str(json_length)})


async def _read(call: Call, version: AdapterVersion) -> tuple[tensors.InferRequest, list[bytes]]:
    settings, headers = call.context.settings, call.headers
    length = headers.get(tensors.JSON_LENGTH)
    limit = settings.max_body_bytes if length else min(settings.max_body_bytes, MAX_JSON_BYTES)
    content = await call.read(limit)
    content = await inflate(content, headers.get("content-encoding", "").lower(), limit, call.reservation)
    head, binary = tensors.split(content, length)
    if len(head) > MAX_JSON_BYTES:
        raise PayloadTooLarge(f"the JSON of the body is larger than {MAX_JSON_BYTES} bytes")
    document = await asyncio.to_thread(set_aside, head)
    call.reservation.add(document.parsed_bytes + len(binary))

    def parse() -> tuple[tensors.InferRequest, list[bytes]]:
        asked = document.parse(tensors.InferRequest)
        tensors.wanted(asked, version.manifest)
        return asked, filled(tensors.clips_of(document, asked, settings.max_clips, binary))

    return await asyncio.to_thread(parse)
