"""The Open Inference Protocol, version 2: an adapter is a model. Its clients, routers and gateways need no other."""

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from service.api import open_inference as protocol
from service.api.auth import INFER, OPEN, READ
from service.api.bodies import read_body
from service.api.clips import filled
from service.api.context import context_of
from service.api.lifetime import Admission, admitted, while_connected
from service.api.long_json import set_aside
from service.api.openapi import INFER_BODY, errors
from service.api.outputs import ERRORS, few_values, infer, json_answer
from service.api.tensor_bytes import JSON_LENGTH, inflate, split
from service.errors import AdapterFailed, PayloadTooLarge
from service.registry.store import AdapterVersion

MAX_JSON_BYTES: Final = 16 * 2**20

router: Final = APIRouter(tags=["open inference protocol"])

Model = Annotated[str, Path(description="`name` (its live version), `name@2` or `name@alias`.")]
Version = Annotated[str, Path(description="A version, or an alias, of the model.")]
_READ: Final = errors(
    *(
        "unknown_adapter",
        "unknown_version",
        "adapter_failed",
        "invalid_request",
        "unauthorized",
        "forbidden",
        "not_ready",
        "overloaded",
    )
)


@router.get("/v2/health/live", dependencies=[Depends(OPEN)])
async def server_live() -> protocol.ServerLive:
    """Answers as soon as the process listens."""
    return protocol.ServerLive(live=True)


@router.get("/v2/health/ready", dependencies=[Depends(OPEN)], responses=errors("not_ready"))
async def server_ready(request: Request) -> protocol.ServerReady:
    """As /readyz: 200 once the backbone is loaded and warm, 503 again while the service stops or its device hangs."""
    context_of(request).check_ready()
    return protocol.ServerReady(ready=True)


@router.get("/v2", dependencies=[Depends(OPEN)])
async def server_metadata(request: Request) -> protocol.ServerMetadata:
    """Name and version of the service."""
    extensions = list(protocol.EXTENSIONS)
    return protocol.ServerMetadata(name=request.app.title, version=request.app.version, extensions=extensions)


@router.get("/v2/models/{model}", dependencies=[Depends(READ)], responses=_READ)
async def model_metadata(request: Request, model: Model) -> protocol.ModelMetadata:
    """The tensors that an adapter takes and answers."""
    return _metadata(request, model, _resolved(request, model))


@router.get("/v2/models/{model}/versions/{version}", dependencies=[Depends(READ)], responses=_READ)
async def model_version_metadata(request: Request, model: Model, version: Version) -> protocol.ModelMetadata:
    """The tensors that one version of an adapter takes and answers."""
    return _metadata(request, model, _resolved(request, f"{model}@{version}"))


@router.get("/v2/models/{model}/ready", dependencies=[Depends(READ)], responses=_READ)
async def model_ready(request: Request, model: Model) -> protocol.ModelReady:
    """Whether an adapter can be asked; one that is not on the device yet is loaded when it is."""
    return await _readiness(request, model, model)


@router.get("/v2/models/{model}/versions/{version}/ready", dependencies=[Depends(READ)], responses=_READ)
async def model_version_ready(request: Request, model: Model, version: Version) -> protocol.ModelReady:
    """Whether one version of an adapter can be asked."""
    return await _readiness(request, model, f"{model}@{version}")


@router.post(
    "/v2/models/{model}/infer",
    dependencies=[Depends(INFER)],
    response_model=protocol.InferAnswer,
    responses=errors(*ERRORS),
    openapi_extra=INFER_BODY,
)
async def model_infer(request: Request, model: Model) -> Response:
    """Scores of every label, or embeddings, of one or more clips by one adapter."""
    return await _infer(request, model, model)


@router.post(
    "/v2/models/{model}/versions/{version}/infer",
    dependencies=[Depends(INFER)],
    response_model=protocol.InferAnswer,
    responses=errors(*ERRORS),
    openapi_extra=INFER_BODY,
)
async def model_version_infer(request: Request, model: Model, version: Version) -> Response:
    """As above, by one version of an adapter."""
    return await _infer(request, model, f"{model}@{version}")


def _resolved(request: Request, reference: str) -> AdapterVersion:
    return context_of(request).runtime.registry.resolve(reference)


def _metadata(request: Request, model: str, version: AdapterVersion) -> protocol.ModelMetadata:
    record = context_of(request).runtime.registry.record(version.name)
    return protocol.ModelMetadata(
        name=model,
        versions=[str(one.version) for one in record.versions],
        platform="ipet",
        inputs=[protocol.TensorMetadata(name=protocol.INPUT, datatype="BYTES", shape=[-1])],
        outputs=protocol.described(version.manifest),
    )


async def _readiness(request: Request, model: str, reference: str) -> protocol.ModelReady:
    version, context = _resolved(request, reference), context_of(request)
    runtime = context.runtime
    fault = await context.disk.once(runtime.registry.problem, version)
    if fault := fault or runtime.engine.device.residences([version])[0].failure:
        raise AdapterFailed(fault, adapter=reference)
    return protocol.ModelReady(name=model, ready=True)


async def _infer(request: Request, model: str, reference: str) -> Response:
    async with admitted(request) as admission:
        version = _resolved(request, reference)
        async with admission.runtime.engine.admit([version]) as place:
            asked, encoded = await _read(admission, version)
            _, outputs = await while_connected(request, infer(admission, place, encoded))
        told = [of_clip[0] for of_clip in outputs]
        if few_values(outputs):
            content, json_length = protocol.answer(asked, model, told)
        else:
            content, json_length = await asyncio.to_thread(protocol.answer, asked, model, told)
        answered = json_answer(content)
        if json_length is not None:
            answered.headers[JSON_LENGTH] = str(json_length)
            answered.headers["Content-Type"] = "application/octet-stream"
        return answered


async def _read(admission: Admission, version: AdapterVersion) -> tuple[protocol.InferRequest, list[bytes]]:
    settings, headers = admission.context.settings, admission.request.headers
    length = headers.get(JSON_LENGTH)
    limit = settings.max_body_bytes if length else min(settings.max_body_bytes, MAX_JSON_BYTES)
    body = await read_body(admission.request, limit, admission.reservation)
    body = await inflate(body, headers.get("content-encoding", "").lower(), limit, admission.reservation)
    head, binary = split(body, length)
    if len(head) > MAX_JSON_BYTES:
        raise PayloadTooLarge(f"the JSON of the body is larger than {MAX_JSON_BYTES} bytes")
    document = await asyncio.to_thread(set_aside, head)
    admission.reservation.add(document.parsed_bytes + len(binary))

    def parse() -> tuple[protocol.InferRequest, list[bytes]]:
        asked = document.parse(protocol.InferRequest)
        protocol.wanted(asked, version.manifest)
        clips = protocol.clips_of(document, asked, settings.max_clips, binary)
        return asked, [filled(content, clip) for clip, content in enumerate(clips)]

    return await asyncio.to_thread(parse)
