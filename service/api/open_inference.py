"""Tensors of the Open Inference Protocol: their shapes, clips out of them, and answers in them. Knows no routes.

The protocol is KServe's REST form, version 2, with tensors as JSON; its binary extension is not spoken.
"""

import base64
import binascii
import math
import struct
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.api.answers import finite
from service.audio.waveform import SAMPLING_RATE
from service.engine.engine import Outputs
from service.errors import InvalidRequest
from service.model.spec import TaskType
from service.registry.manifest import Manifest
from service.scoring.score import mean_scores, voiceprint

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

    name: Literal["audio"]
    shape: list[int] = Field(min_length=1, max_length=2)
    datatype: Literal["BYTES", "FP32"]
    parameters: dict[str, Any] = Field(default={}, description="`sampling_rate` of FP32, Hz; 16000 without it.")
    data: list[Any]


class RequestedOutput(BaseModel):
    name: str


class InferRequest(BaseModel):
    id: str | None = None
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


def clips_of(tensor: InputTensor, most: int) -> list[bytes]:
    """The encoded clips of an input tensor, at most `most`.

    Raises:
        InvalidRequest: shape and data disagree, no base64, no numbers, or too many clips.
    """
    count = tensor.shape[0] if len(tensor.shape) == 2 or tensor.datatype == "BYTES" else 1
    if not 1 <= count <= most:
        raise InvalidRequest(f"inputs.0.shape asks for {count} clips; 1 to {most} are accepted")
    if tensor.datatype == "FP32":
        return [_wav(row, _rate(tensor)) for row in _samples(tensor, count)]
    if math.prod(tensor.shape) != count or len(tensor.data) != count:
        raise InvalidRequest(f"inputs.0.shape is {tensor.shape}, inputs.0.data has {len(tensor.data)} elements")
    return [_unpacked(element, f"inputs.0.data.{index}") for index, element in enumerate(tensor.data)]


def unpack(text: str, where: str) -> bytes:
    """Bytes that came in base64; raises InvalidRequest naming `where` for anything else."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{where} must be the audio file's bytes in base64: {error}") from error


def _unpacked(element: object, where: str) -> bytes:
    if not isinstance(element, str):
        raise InvalidRequest(f"{where} must be a string: the audio file's bytes in base64")
    return unpack(element, where)


def _samples(tensor: InputTensor, count: int) -> NDArray[np.float32]:
    """Samples `[clips, samples]`, given row by row or as rows."""
    wrong = InvalidRequest(f"inputs.0.data must be numbers that fill the shape {tensor.shape}, flat or in rows")
    try:
        values = np.array(tensor.data)
        if values.dtype.kind not in "iuf" or values.shape not in ((math.prod(tensor.shape),), tuple(tensor.shape)):
            raise wrong
        with np.errstate(over="ignore"):  # an infinite sample is refused with the audio
            return values.astype(np.float32).reshape(count, -1)
    except (ValueError, OverflowError) as error:
        raise wrong from error


def _rate(tensor: InputTensor) -> int:
    rate = tensor.parameters.get(RATE_PARAMETER, SAMPLING_RATE)
    if not isinstance(rate, int) or isinstance(rate, bool) or not 1 <= rate <= MAX_RATE:
        raise InvalidRequest(f"inputs.0.parameters.{RATE_PARAMETER} must be a whole number of Hz up to {MAX_RATE}")
    return rate


def _wav(samples: NDArray[np.float32], rate: int) -> bytes:
    """A wav file of `samples` `[N]`: samples take the way, and meet the limits, of every other clip."""
    content = samples.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", _FLOAT_FORMAT, 1, rate, 4 * rate, 4, 32)
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


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
        of_clip = mean_scores if name == "scores" else voiceprint
        rows = np.stack([of_clip(finite(output)) for output in outputs])
        shape = [len(outputs), classes]
        tensors.append(OutputTensor(name=name, datatype=datatype, shape=shape, data=rows.ravel().tolist()))
    told = InferAnswer(model_name=model, model_version=str(adapter.version), id=request.id, outputs=tensors)
    return told.model_dump_json(exclude_none=True).encode()
