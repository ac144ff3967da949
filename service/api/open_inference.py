"""Tensors of the Open Inference Protocol: their shapes, clips out of them, and answers in them. Knows no routes.

The protocol is KServe's REST form, version 2, with tensors as JSON; its binary extension is not spoken.
"""

import math
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.api.answers import finite, scores
from service.api.long_json import Document, in_a_list, single_precision
from service.audio.waveform import SAMPLING_RATE
from service.engine.engine import Outputs
from service.errors import InvalidRequest
from service.model.spec import TaskType
from service.registry.manifest import Manifest
from service.scoring.score import voiceprint

INPUT: Final = "audio"
RATE_PARAMETER: Final = "sampling_rate"
MAX_RATE: Final = 192_000  # Hz
_FLOAT_FORMAT: Final = 3  # of a wav file's header: IEEE float


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


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 is any number of clips.")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InputTensor(BaseModel):
    """`BYTES`: audio files in base64, shape [clips]. `FP32`: samples, shape [samples] or [clips, samples]."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["audio"]
    shape: list[int] = Field(min_length=1, max_length=2)
    datatype: Literal["BYTES", "FP32"]
    parameters: dict[str, Any] = Field(default={}, description="`sampling_rate` of FP32, Hz; 16000 without it.")
    data: Annotated[list[Any], BeforeValidator(in_a_list)]


class RequestedOutput(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str | None = None
    parameters: dict[str, Any] = Field(default={}, description="`sampling_rate` where the input has none of its own.")
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = Field(default=None, description="All of them without it.")


class OutputTensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] = Field(description="Row by row.")


class InferAnswer(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


def described(manifest: Manifest) -> list[TensorMetadata]:
    """What an adapter answers: `scores` and `labels`, or `embedding`."""
    if manifest.task_type is TaskType.CLASSIFICATION:
        classes = len(manifest.labels or ())
        return [
            TensorMetadata(name="scores", datatype="FP32", shape=[-1, classes]),
            TensorMetadata(name="labels", datatype="BYTES", shape=[classes]),
        ]
    return [TensorMetadata(name="embedding", datatype="FP32", shape=[-1, manifest.embedding_dim or 0])]


def wanted(request: InferRequest, manifest: Manifest) -> list[str]:
    """Names of the outputs to answer.

    Raises:
        InvalidRequest: an output that the adapter does not have.
    """
    known = [one.name for one in described(manifest)]
    names = known if request.outputs is None else [output.name for output in request.outputs]
    for name in names:
        if name not in known:
            raise InvalidRequest(f"{manifest.name!r} has no output {name[:100]!r}; it has {' and '.join(known)}")
    return names


def clips_of(document: Document, request: InferRequest, most: int) -> list[bytes]:
    """The encoded clips of a request's input tensor, at most `most`.

    Raises:
        InvalidRequest: shape and data disagree, no base64, no numbers, or too many clips.
    """
    tensor = request.inputs[0]
    count = tensor.shape[0] if len(tensor.shape) == 2 or tensor.datatype == "BYTES" else 1
    if not 1 <= count <= most:
        raise InvalidRequest(f"inputs.0.shape asks for {count} clips; 1 to {most} are accepted")
    if tensor.datatype == "FP32":
        rate = _rate(request)
        return [_wav(row, rate) for row in _samples(document, tensor, count)]
    elements = [e for row in tensor.data for e in row] if _is_in_rows(document, tensor) else tensor.data
    if math.prod(tensor.shape) != count or len(elements) != count:
        raise InvalidRequest(f"inputs.0.shape is {tensor.shape}, inputs.0.data has {len(elements)} elements")
    return [_unpacked(document, element, f"inputs.0.data.{index}") for index, element in enumerate(elements)]


def _is_in_rows(document: Document, tensor: InputTensor) -> bool:
    """Whether the elements of `data` are rows of elements."""
    return bool(tensor.data) and all(isinstance(element, list) for element in tensor.data)


def _unpacked(document: Document, element: object, where: str) -> bytes:
    if not isinstance(element, str):
        raise InvalidRequest(f"{where} must be a string: the audio file's bytes in base64")
    return document.unpack(element, where)


def _samples(document: Document, tensor: InputTensor, count: int) -> NDArray[np.float32]:
    """Samples `[clips, samples]`, given row by row or as rows."""
    flat = not any(isinstance(element, list) or document.is_run(element) for element in tensor.data)
    rows = [_numbers(document, row) for row in ([tensor.data] if flat else tensor.data)]
    lengths = {len(row) for row in rows}
    if sum(map(len, rows)) != math.prod(tensor.shape) or (len(rows) > 1 and lengths != {tensor.shape[-1]}):
        raise InvalidRequest(f"inputs.0.data must be numbers that fill the shape {tensor.shape}, flat or in rows")
    return (rows[0] if len(rows) == 1 else np.concatenate(rows)).reshape(count, -1)


def _numbers(document: Document, row: object) -> NDArray[np.float32]:
    if isinstance(row, str) and document.is_run(row):
        return document.numbers(row, "inputs.0.data")
    if not isinstance(row, list) or not all(type(value) in (int, float) for value in row):
        raise InvalidRequest("inputs.0.data must be numbers, flat or in rows")
    try:
        return single_precision(row)  # an infinite sample is refused with the audio
    except OverflowError as error:
        raise InvalidRequest(f"inputs.0.data: {error}") from error


def _rate(request: InferRequest) -> int:
    """The input's own, or that of the whole request."""
    tensor = request.inputs[0]
    told = {RATE_PARAMETER: SAMPLING_RATE} | request.parameters | tensor.parameters
    rate = told[RATE_PARAMETER]
    if not isinstance(rate, int) or isinstance(rate, bool) or not 1 <= rate <= MAX_RATE:
        where = "inputs.0.parameters" if RATE_PARAMETER in tensor.parameters else "parameters"
        raise InvalidRequest(f"{where}.{RATE_PARAMETER} must be a whole number of Hz up to {MAX_RATE}")
    return rate


def _wav(samples: NDArray[np.float32], rate: int) -> bytes:
    """A wav file of `samples` `[N]`: samples take the way, and meet the limits, of every other clip."""
    content = np.ascontiguousarray(samples, dtype="<f4")
    form = struct.pack("<HHIIHH", _FLOAT_FORMAT, 1, rate, 4 * rate, 4, 32)
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", content.nbytes)
    return b"".join((b"RIFF", struct.pack("<I", len(head) + content.nbytes), head, content.data))


def answer(request: InferRequest, model: str, outputs: Sequence[Outputs]) -> bytes:
    """The answer to `request`: one row for each clip; labels in the adapter's order."""
    adapter = outputs[0].adapter
    manifest = adapter.manifest
    shapes = {one.name: one for one in described(manifest)}
    tensors = []
    for name in wanted(request, manifest):
        datatype, classes = shapes[name].datatype, shapes[name].shape[-1]
        if name == "labels":
            tensors.append(
                OutputTensor(name=name, datatype=datatype, shape=[classes], data=list(manifest.labels or ()))
            )
            continue
        rows = np.stack([scores(output) if name == "scores" else voiceprint(finite(output)) for output in outputs])
        shape = [len(outputs), classes]
        tensors.append(OutputTensor(name=name, datatype=datatype, shape=shape, data=rows.ravel().tolist()))
    told = InferAnswer(model_name=model, model_version=str(adapter.version), id=request.id, outputs=tensors)
    return told.model_dump_json(exclude_none=True).encode()
