"""Tensors of the Open Inference Protocol: clips out of them, and answers in them, as JSON or as bytes behind it.

The protocol is KServe's REST form, version 2, with the extensions that Triton's clients use.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.api.inference.asking import clip_embedding, scores
from service.api.long_json import Document, in_a_list, single_precision
from service.audio.waveform import SAMPLING_RATE
from service.engine.engine import Outputs
from service.errors import InvalidRequest
from service.model.spec import TaskType
from service.registry.manifest import Manifest

INPUT: Final = "audio"
JSON_LENGTH: Final = "Inference-Header-Content-Length"  # header: bytes of JSON before the tensors' own
BINARY_SIZE: Final = "binary_data_size"  # parameter of a tensor whose data are bytes behind the JSON
CLASSIFICATION: Final = "classification"  # parameter of an output: that many best labels instead of every value
RATE_PARAMETER: Final = "sampling_rate"
MAX_RATE: Final = 192_000  # Hz
_FLOAT_FORMAT: Final = 3  # of a wav file's header: IEEE float
_LENGTH: Final = struct.Struct("<I")  # before each element of BYTES


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 is any number of clips.")


INPUTS: Final = TensorMetadata(name=INPUT, datatype="BYTES", shape=[-1])  # of every adapter


class InputTensor(BaseModel):
    """`BYTES`: audio files, in base64 or as bytes behind the JSON, shape [clips]. `FP32`: samples, shape [samples] or
    [clips, samples]."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["audio"]
    shape: list[int] = Field(min_length=1, max_length=2)
    datatype: Literal["BYTES", "FP32"]
    parameters: dict[str, Any] = Field(
        default={}, description="`sampling_rate` of FP32, Hz; 16000 without it. `binary_data_size` in place of `data`."
    )
    data: Annotated[list[Any] | None, BeforeValidator(in_a_list)] = None


class RequestedOutput(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    parameters: dict[str, Any] = Field(default={}, description="`binary_data`, and of scores `classification`.")


class InferRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str | None = None
    parameters: dict[str, Any] = Field(
        default={}, description="`sampling_rate` where the input has none; `binary_data_output`."
    )
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = Field(default=None, description="All of them without it.")


class OutputTensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = Field(default=None, description="`binary_data_size` in place of `data`.")
    data: list[Any] | None = Field(default=None, description="Row by row.")


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


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output to answer.

    Args:
        best: so many best labels, as strings, instead of every value; 0 for the values.
    """

    name: str
    is_binary: bool
    best: int


def wanted(request: InferRequest, manifest: Manifest) -> list[Wanted]:
    """The outputs to answer.

    Raises:
        InvalidRequest: an output that the adapter does not have, or cannot answer like that.
    """
    known = [one.name for one in described(manifest)]
    asked = [RequestedOutput(name=name) for name in known] if request.outputs is None else request.outputs
    return [_wanted(output, request, manifest, known) for output in asked]


def _wanted(output: RequestedOutput, request: InferRequest, manifest: Manifest, known: list[str]) -> Wanted:
    if output.name not in known:
        raise InvalidRequest(f"{manifest.name!r} has no output {output.name[:100]!r}; it has {' and '.join(known)}")
    if "shared_memory_region" in output.parameters:
        raise InvalidRequest("shared memory is not spoken; ask for the output in the answer")
    is_binary = output.parameters.get("binary_data", request.parameters.get("binary_data_output", False))
    if not isinstance(is_binary, bool):
        raise InvalidRequest("binary_data and binary_data_output are true or false")
    best = output.parameters.get(CLASSIFICATION, 0)
    if type(best) is not int or best < 0 or (best and output.name != "scores"):
        raise InvalidRequest(f"{CLASSIFICATION} is a whole number of best labels, of the output scores")
    return Wanted(output.name, is_binary, best)


def clips_of(document: Document, request: InferRequest, most: int, binary: memoryview) -> list[bytes]:
    """The encoded clips of a request's input tensor, at most `most`.

    Args:
        binary: what came behind the JSON.

    Raises:
        InvalidRequest: shape and data disagree, no base64, no numbers, or too many clips.
    """
    tensor = request.inputs[0]
    count = tensor.shape[0] if len(tensor.shape) == 2 or tensor.datatype == "BYTES" else 1
    if not 1 <= count <= most:
        raise InvalidRequest(f"inputs.0.shape asks for {count} clips; 1 to {most} are accepted")
    _check_binary(tensor, binary)
    if tensor.datatype == "FP32":
        rate = _rate(request)
        samples = _samples(document, tensor, count) if tensor.data is not None else _samples_of(binary, tensor, count)
        return [_wav(row, rate) for row in samples]
    clips = _elements(binary, count) if tensor.data is None else _flat(tensor.data)
    if math.prod(tensor.shape) != count or len(clips) != count:
        raise InvalidRequest(f"inputs.0.shape is {tensor.shape}, inputs.0 has {len(clips)} elements")
    return [_unpacked(document, element, f"inputs.0.data.{index}") for index, element in enumerate(clips)]


def _check_binary(tensor: InputTensor, binary: memoryview) -> None:
    """Raises InvalidRequest unless the tensor has data, or all the bytes behind the JSON instead."""
    if "shared_memory_region" in tensor.parameters:
        raise InvalidRequest("shared memory is not spoken; send the tensor in the body")
    size = tensor.parameters.get(BINARY_SIZE)
    if (size is None) == (tensor.data is None) or (size or 0) != len(binary) or isinstance(size, bool):
        raise InvalidRequest(
            f"inputs.0 has either data or {BINARY_SIZE}, which is the bytes behind the JSON; {len(binary)} came"
        )


def _flat(data: list[Any]) -> list[Any]:
    """Elements, given row by row or as rows."""
    is_in_rows = bool(data) and all(isinstance(element, list) for element in data)
    return [element for row in data for element in row] if is_in_rows else data


def _samples_of(binary: memoryview, tensor: InputTensor, count: int) -> NDArray[np.float32]:
    """Samples `[clips, samples]` out of bytes."""
    if len(binary) != 4 * math.prod(tensor.shape):
        raise InvalidRequest(f"inputs.0.shape is {tensor.shape}, but {len(binary)} bytes came, 4 for each sample")
    return np.frombuffer(binary, "<f4").reshape(count, -1)


def _unpacked(document: Document, element: object, where: str) -> bytes:
    if isinstance(element, bytes):
        return element
    if not isinstance(element, str):
        raise InvalidRequest(f"{where} must be a string: the audio file's bytes in base64")
    return document.unpack(element, where)


def _samples(document: Document, tensor: InputTensor, count: int) -> NDArray[np.float32]:
    """Samples `[clips, samples]`, given row by row or as rows."""
    data = tensor.data or []
    flat = not any(isinstance(element, list) or document.is_run(element) for element in data)
    rows = [_numbers(document, row) for row in ([data] if flat else data)]
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


def answer(request: InferRequest, model: str, outputs: Sequence[Outputs]) -> tuple[bytes, int | None]:
    """The answer to `request`: one row for each clip; labels in the adapter's order.

    Returns:
        The body, and how much of it is JSON where tensors follow as bytes.
    """
    adapter = outputs[0].adapter
    labels = adapter.manifest.labels or ()
    tensors: list[OutputTensor] = []
    behind: list[bytes] = []
    for one in wanted(request, adapter.manifest):
        if one.name == "labels":
            tensor = OutputTensor(name=one.name, datatype="BYTES", shape=[len(labels)], data=list(labels))
        else:
            rows = [scores(output) if one.name == "scores" else clip_embedding(output) for output in outputs]
            tensor = _of_clips(one, np.stack(rows), labels)
        if one.is_binary:
            content = _bytes_of(tensor)
            behind.append(content)
            tensor = tensor.model_copy(update={"data": None, "parameters": {BINARY_SIZE: len(content)}})
        tensors.append(tensor)
    told = InferAnswer(model_name=model, model_version=str(adapter.version), id=request.id, outputs=tensors)
    head = told.model_dump_json(exclude_none=True).encode()
    return (head, None) if not behind else (b"".join((head, *behind)), len(head))


def _of_clips(one: Wanted, values: NDArray[np.float32], labels: Sequence[str]) -> OutputTensor:
    """Values `[clips, N]`, or the best of them as `score:index:label`."""
    if not one.best:
        return OutputTensor(name=one.name, datatype="FP32", shape=list(values.shape), data=values.ravel().tolist())
    best = np.argsort(-values, axis=1, kind="stable")[:, : one.best]
    words = [f"{row[i]:.6f}:{i}:{labels[i]}" for row, indices in zip(values, best, strict=True) for i in indices]
    return OutputTensor(name=one.name, datatype="BYTES", shape=list(best.shape), data=words)


def _bytes_of(tensor: OutputTensor) -> bytes:
    data = tensor.data or []
    return _packed(data) if tensor.datatype == "BYTES" else np.array(data, "<f4").tobytes()


def split(body: bytes, header: str | None) -> tuple[bytes, memoryview]:
    """The JSON of a body, and the bytes of its tensors; without the header all of it is JSON.

    Raises:
        InvalidRequest: the header is no length within the body.
    """
    if header is None:
        return body, memoryview(b"")
    if not (header.isascii() and header.isdecimal() and len(header) < 12 and int(header) <= len(body)):
        raise InvalidRequest(f"{JSON_LENGTH} must be the bytes of JSON before the tensors, got {header[:50]!r}")
    length = int(header)
    return body[:length], memoryview(body)[length:]


def _elements(content: memoryview, most: int) -> list[bytes]:
    """The elements of a BYTES tensor, each behind its length.

    Raises:
        InvalidRequest: lengths that do not fit the bytes, or more than `most` elements.
    """
    found: list[bytes] = []
    at = 0
    while at < len(content):
        if len(found) == most:
            raise InvalidRequest(f"inputs.0 holds more than the {most} elements of its shape")
        begin = at + _LENGTH.size
        end = begin + _LENGTH.unpack_from(content, at)[0] if begin <= len(content) else len(content) + 1
        if end > len(content):
            raise InvalidRequest("inputs.0 breaks off within an element: each is 4 bytes of length, then its bytes")
        found.append(bytes(content[begin:end]))
        at = end
    return found


def _packed(words: Iterable[str]) -> bytes:
    """Strings as a BYTES tensor."""
    encoded = [word.encode() for word in words]
    return b"".join(part for word in encoded for part in (_LENGTH.pack(len(word)), word))
