"""The Open Inference Protocol's extensions about models: the repository, their configuration, their statistics."""

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, Field

from service.access.keys import Grant
from service.api import open_inference as protocol
from service.api.auth import READ, WRITE, caller_of
from service.api.bodies import read_body
from service.api.context import Context, context_of
from service.api.lifetime import admitted
from service.api.long_json import parse_json
from service.api.openapi import errors
from service.api.routes import changes
from service.api.schemas import Residency
from service.api.statistics import Asked, Tally
from service.errors import InvalidRequest
from service.registry.store import AdapterVersion

MAX_BODY_BYTES: Final = 2**16
TYPES: Final = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32"}

router: Final = APIRouter(tags=["open inference protocol"])

Model = Annotated[str, Path(description="`name` (its live version), `name@2` or `name@alias`.")]
Version = Annotated[str, Path(description="A version, or an alias, of the model.")]
_READ: Final[dict[str, Any]] = {
    "dependencies": [Depends(READ)],
    "responses": errors(
        *("unknown_adapter", "unknown_version", "invalid_request", "payload_too_large", "unauthorized", "forbidden"),
        *("not_ready", "overloaded", "adapter_failed"),
    ),
}
_WRITE: Final[dict[str, Any]] = {
    "dependencies": [Depends(WRITE)],
    "responses": errors(
        *("unknown_adapter", "unknown_version", "invalid_request", "payload_too_large", "unauthorized", "forbidden"),
        *("not_ready", "overloaded", "adapter_failed", "no_free_slot", "deadline_exceeded"),
    ),
}


class IndexRequest(BaseModel):
    ready: bool = False


class IndexEntry(BaseModel):
    name: str
    version: str
    state: str = Field(description="READY: can be asked, and is loaded when it is; or UNAVAILABLE.")
    reason: str = ""


class RepositoryRequest(BaseModel):
    parameters: dict[str, Any] = {}


class ConfigTensor(BaseModel):
    name: str
    data_type: str
    dims: list[int] = Field(description="-1 is any number of clips.")


class ModelConfig(BaseModel):
    name: str
    platform: str = "ipet"
    backend: str = "ipet"
    max_batch_size: int = Field(default=0, description="0: the shapes tell the clips themselves.")
    input: list[ConfigTensor]
    output: list[ConfigTensor]


class Duration(BaseModel):
    count: int
    ns: int

    @classmethod
    def of(cls, tally: Tally) -> "Duration":
        return cls(count=tally.count, ns=tally.ns)


class InferenceStatistics(BaseModel):
    """`queue` is part of `compute_infer`; `compute_input` is the decoding of the clips."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class ModelStatistics(BaseModel):
    name: str
    version: str
    last_inference: int = Field(description="Milliseconds since 1970.")
    inference_count: int = Field(description="Clips answered.")
    execution_count: int = Field(description="Requests answered.")
    inference_stats: InferenceStatistics
    batch_stats: list[dict[str, Any]] = []


class StatisticsAnswer(BaseModel):
    model_stats: list[ModelStatistics] = Field(description="Since the process started, of every door.")


@router.post("/v2/repository/index", **_READ)
async def repository_index(request: Request) -> list[IndexEntry]:
    """Every version that the key may see; with `{"ready": true}` those that can be asked."""
    async with admitted(request) as admission:
        body = await read_body(request, MAX_BODY_BYTES, admission.reservation)
        asked = parse_json(body, IndexRequest) if body else IndexRequest()
        context, grant = admission.context, caller_of(request).grant
        return await context.disk.once(_index, context, grant, asked.ready)


@router.post("/v2/repository/models/{model}/load", **_WRITE)
async def repository_load(request: Request, model: Model) -> Residency:
    """As /v1/adapters/{name}/load; a bundle comes by upload, not here."""
    await _check(request)
    return await changes.load(request, model)


@router.post("/v2/repository/models/{model}/unload", **_WRITE)
async def repository_unload(request: Request, model: Model) -> Residency:
    """As /v1/adapters/{name}/unload: the next request loads it again."""
    await _check(request)
    return await changes.unload(request, model)


@router.get("/v2/models/{model}/config", **_READ)
async def model_config(request: Request, model: Model) -> ModelConfig:
    """The tensors of an adapter, as a model configuration of Triton tells them."""
    return _config(model, context_of(request).runtime.registry.resolve(model))


@router.get("/v2/models/{model}/versions/{version}/config", **_READ)
async def model_version_config(request: Request, model: Model, version: Version) -> ModelConfig:
    """The same of one version."""
    return _config(model, context_of(request).runtime.registry.resolve(f"{model}@{version}"))


@router.get("/v2/models/stats", **_READ)
async def statistics(request: Request) -> StatisticsAnswer:
    """What every version that the key may see was asked."""
    context, grant = context_of(request), caller_of(request).grant
    return await context.disk.once(_every_statistic, context, grant)


@router.get("/v2/models/{model}/stats", **_READ)
async def model_statistics(request: Request, model: Model) -> StatisticsAnswer:
    """What the versions of an adapter were asked, or one of them that is named."""
    context = context_of(request)
    registry = context.runtime.registry
    resolved = registry.resolve(model)
    versions = [resolved] if "@" in model else registry.record(resolved.name).versions
    return StatisticsAnswer(model_stats=[_statistic(context, one) for one in versions])


@router.get("/v2/models/{model}/versions/{version}/stats", **_READ)
async def model_version_statistics(request: Request, model: Model, version: Version) -> StatisticsAnswer:
    """What one version was asked."""
    context = context_of(request)
    resolved = context.runtime.registry.resolve(f"{model}@{version}")
    return StatisticsAnswer(model_stats=[_statistic(context, resolved)])


def _index(context: Context, grant: Grant, only_ready: bool) -> list[IndexEntry]:
    runtime, found = context.runtime, []
    for record in runtime.registry.walk(""):
        if not grant.covers(record.name):
            continue
        for version, place in zip(record.versions, runtime.engine.device.residences(record.versions), strict=True):
            reason = runtime.registry.problem(version) or place.failure
            if not (reason and only_ready):
                state = "UNAVAILABLE" if reason else "READY"
                found.append(
                    IndexEntry(name=record.name, version=str(version.version), state=state, reason=reason or "")
                )
    return found


async def _check(request: Request) -> None:
    """Raises InvalidRequest where more is asked than to load or unload what is there."""
    async with admitted(request) as admission:
        body = await read_body(request, MAX_BODY_BYTES, admission.reservation)
    asked = await asyncio.to_thread(parse_json, body, RepositoryRequest) if body else RepositoryRequest()
    if files := [name for name in asked.parameters if name == "config" or name.startswith("file:")]:
        raise InvalidRequest(
            f"{files[0][:100]} cannot be given here; a bundle comes by POST /v1/adapters/NAME/versions"
        )


def _config(model: str, version: AdapterVersion) -> ModelConfig:
    outputs = [_tensor(one) for one in protocol.described(version.manifest)]
    given = protocol.TensorMetadata(name=protocol.INPUT, datatype="BYTES", shape=[-1])
    return ModelConfig(name=model, input=[_tensor(given)], output=outputs)


def _tensor(one: protocol.TensorMetadata) -> ConfigTensor:
    return ConfigTensor(name=one.name, data_type=TYPES[one.datatype], dims=one.shape)


def _every_statistic(context: Context, grant: Grant) -> StatisticsAnswer:
    records = [record for record in context.runtime.registry.walk("") if grant.covers(record.name)]
    return StatisticsAnswer(model_stats=[_statistic(context, one) for record in records for one in record.versions])


def _statistic(context: Context, version: AdapterVersion) -> ModelStatistics:
    asked: Asked = context.statistics.of(version.name, version.version)
    nothing = Duration(count=0, ns=0)
    return ModelStatistics(
        name=version.name,
        version=str(version.version),
        last_inference=asked.last_ms,
        inference_count=asked.clips,
        execution_count=asked.success.count,
        inference_stats=InferenceStatistics(
            success=Duration.of(asked.success),
            fail=Duration.of(asked.fail),
            queue=nothing,
            compute_input=Duration.of(asked.decoding),
            compute_infer=Duration.of(asked.inference),
            compute_output=nothing,
            cache_hit=nothing,
            cache_miss=nothing,
        ),
    )
