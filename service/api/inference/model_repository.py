"""The Open Inference Protocol's extensions about models: the repository, their configuration, their statistics."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Final

from fastapi import APIRouter
from pydantic import BaseModel, Field

from service.answers import Residency
from service.api import changes
from service.api.auth import READ, WRITE, asks
from service.api.call import Call
from service.api.context import Context
from service.api.inference import tensors
from service.api.inference.open_inference import Model, of_model
from service.api.long_json import parse_json
from service.api.statistics import Tally
from service.errors import InvalidRequest
from service.registry.store import AdapterRecord, AdapterVersion

MAX_BODY_BYTES: Final = 2**16
TYPES: Final = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32"}

router: Final = APIRouter(tags=["open inference protocol"])

_CODES: Final = ("unknown_adapter", "unknown_version", "payload_too_large", "overloaded", "adapter_failed")
_READ: Final = asks(READ, *_CODES)
_WRITE: Final = asks(WRITE, *_CODES, "no_free_slot")


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


class InferenceStatistics(BaseModel):
    """`queue` is part of `compute_infer`; `compute_input` is the decoding of the clips."""

    success: Tally
    fail: Tally
    queue: Tally = Tally()
    compute_input: Tally
    compute_infer: Tally
    compute_output: Tally = Tally()
    cache_hit: Tally = Tally()
    cache_miss: Tally = Tally()


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
async def repository_index(call: Call) -> list[IndexEntry]:
    """Every version that the key may see; with `{"ready": true}` those that can be asked."""
    body = await call.read(MAX_BODY_BYTES)
    asked = parse_json(body, IndexRequest) if body else IndexRequest()
    return await call.context.disk.once(_index, call, asked.ready)


@router.post("/v2/repository/models/{model}/load", **_WRITE)
async def repository_load(call: Call, model: Model) -> Residency:
    """As /v1/adapters/{name}/load; a bundle comes by upload, not here."""
    await _check(call)
    return await changes.load(call, model)


@router.post("/v2/repository/models/{model}/unload", **_WRITE)
async def repository_unload(call: Call, model: Model) -> Residency:
    """As /v1/adapters/{name}/unload: the next request loads it again."""
    await _check(call)
    return await changes.unload(call, model)


@of_model("GET", "/config", router, **_READ)
async def model_config(call: Call, model: str, reference: str) -> ModelConfig:
    """The tensors of an adapter, as a model configuration of Triton tells them."""
    outputs = tensors.described(call.runtime.registry.resolve(reference).manifest)
    return ModelConfig(name=model, input=[_tensor(tensors.INPUTS)], output=[_tensor(one) for one in outputs])


@router.get("/v2/models/stats", **_READ)
async def statistics(call: Call) -> StatisticsAnswer:
    """What every version that the key may see was asked."""
    return await call.context.disk.once(
        lambda: _statistics(call.context, [version for record in _records(call) for version in record.versions])
    )


@of_model("GET", "/stats", router, **_READ)
async def model_statistics(call: Call, model: str, reference: str) -> StatisticsAnswer:
    """What the versions of an adapter were asked, or one of them that is named."""
    registry = call.runtime.registry
    version = registry.resolve(reference)
    return _statistics(call.context, [version] if "@" in reference else registry.record(version.name).versions)


def _records(call: Call) -> Iterator[AdapterRecord]:
    """The adapters that the key is bound to."""
    return (record for record in call.runtime.registry.walk("") if call.caller.grant.covers(record.name))


def _index(call: Call, only_ready: bool) -> list[IndexEntry]:
    runtime, found = call.runtime, []
    for record in _records(call):
        for version, place in zip(record.versions, runtime.engine.device.residences(record.versions), strict=True):
            reason = runtime.registry.problem(version) or place.failure or ""
            if not (reason and only_ready):
                state = "UNAVAILABLE" if reason else "READY"
                found.append(IndexEntry(name=record.name, version=str(version.version), state=state, reason=reason))
    return found


async def _check(call: Call) -> None:
    """Raises InvalidRequest where more is asked than to load or unload what is there."""
    body = await call.read(MAX_BODY_BYTES)
    asked = await asyncio.to_thread(parse_json, body, RepositoryRequest) if body else RepositoryRequest()
    if files := [name for name in asked.parameters if name == "config" or name.startswith("file:")]:
        raise InvalidRequest(
            f"{files[0][:100]} cannot be given here; a bundle comes by POST /v1/adapters/NAME/versions"
        )


def _tensor(one: tensors.TensorMetadata) -> ConfigTensor:
    return ConfigTensor(name=one.name, data_type=TYPES[one.datatype], dims=one.shape)


def _statistics(context: Context, versions: Sequence[AdapterVersion]) -> StatisticsAnswer:
    return StatisticsAnswer(model_stats=[_statistic(context, version) for version in versions])


def _statistic(context: Context, version: AdapterVersion) -> ModelStatistics:
    asked = context.statistics.of(version.name, version.version)
    return ModelStatistics(
        name=version.name,
        version=str(version.version),
        last_inference=asked.last_ms,
        inference_count=asked.clips,
        execution_count=asked.success.count,
        inference_stats=InferenceStatistics(
            success=asked.success, fail=asked.fail, compute_input=asked.decoding, compute_infer=asked.inference
        ),
    )
