"""From adapters as a request names them, and its clips, to outputs: what all routes share that run the backbone."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Final, TypeVar

import numpy as np
from fastapi import Query
from numpy.typing import NDArray
from starlette.responses import Response

from service.answers import ClipInfo
from service.api.auth import INFER, asks
from service.api.bodies import is_multipart, read_parts
from service.api.call import Call
from service.engine.engine import Outputs, Place
from service.engine.prepare import Clip
from service.engine.recording import Recording
from service.errors import InvalidRequest, WrongTask
from service.model.spec import TaskType
from service.registry.store import AdapterVersion
from service.scoring.cohort import Cohort
from service.scoring.score import clip_scores, merge, voiceprint

T = TypeVar("T")

_FEW_VALUES: Final = 1024
ByClip = Sequence[Sequence[Outputs]]  # outputs by clip, then by adapter as asked

ERRORS: Final = (  # what any route that runs the backbone may answer beside everybody's
    *("bad_audio", "audio_too_long", "payload_too_large", "unknown_adapter", "unknown_version", "wrong_task"),
    *("backbone_mismatch", "adapter_failed", "overloaded", "no_free_slot", "internal"),
)
ROUTE: Final = asks(INFER, *ERRORS)

References = Annotated[
    list[str],
    Query(min_length=1, description="`name`, `name@2` or `name@alias`; repeat it to ask several adapters at once."),
]


def resolve(call: Call, references: Sequence[str], *tasks: TaskType) -> list[AdapterVersion]:
    """The versions that a request asks for; it runs on these, whatever happens to aliases meanwhile.

    Raises:
        InvalidRequest: more adapters than a request may ask.
        UnknownAdapter, UnknownVersion, WrongTask: with the reference at fault.
    """
    most, registry = call.context.settings.max_adapters, call.runtime.registry
    if len(references) > most:
        raise InvalidRequest(f"a request may ask at most {most} adapters, got {len(references)}")
    versions = [registry.resolve(reference) for reference in references]
    for reference, version in zip(references, versions, strict=True):
        if version.manifest.task_type not in tasks:
            wanted = " or ".join(task.value for task in tasks)
            told = f"{reference!r} is for {version.manifest.task_type.value}; this call needs {wanted}"
            raise WrongTask(told, adapter=reference)
    return versions


async def cohort_of(call: Call, version: AdapterVersion) -> Cohort | None:
    """The cohort of a version that normalises scores, read from its weights the first time. Raises AdapterFailed."""
    if version.manifest.normalisation is None:
        return None
    return await asyncio.to_thread(call.runtime.cohorts.of, version)


async def read_clips(call: Call) -> list[bytes]:
    """The encoded clips of a body: the raw body itself, whatever its Content-Type, or its `audio` parts.

    Raises:
        InvalidRequest: no clip, an empty one, or more than the service takes.
    """
    settings = call.context.settings
    if not is_multipart(call):
        return filled([await call.read(settings.max_body_bytes)])
    parts = await read_parts(call, ("audio",), settings.max_clips, settings.max_body_bytes, call.reservation)
    if not parts:
        raise InvalidRequest("the multipart body has no part 'audio'; send each clip as one")
    return filled([content for _, content in parts])


def filled(clips: list[bytes]) -> list[bytes]:
    """The encoded clips themselves; raises InvalidRequest where one is empty."""
    for clip, content in enumerate(clips):
        if not content:
            raise InvalidRequest("the clip is empty; send the bytes of an audio file", clip=clip)
    return clips


async def infer(call: Call, place: Place, encoded: Sequence[bytes]) -> tuple[list[Clip], ByClip]:
    """Every clip decoded once, and what every adapter makes of it; ends when the client has gone."""
    call.adapters = [adapter.reference for adapter in place.adapters]
    began = decoded = time.perf_counter_ns()
    failed = True
    try:
        with call.while_connected():
            clips = await place.prepare(encoded, call.reservation.add)
            decoded = time.perf_counter_ns()
            call.audio_seconds = round(sum(clip.seconds for clip in clips), 3)
            outputs = await place.infer(clips, call.lifetime.deadline)
        failed = False
        return clips, outputs
    finally:
        versions = [adapter.key for adapter in place.adapters]
        call.context.statistics.count(versions, len(encoded), began, decoded, failed)


async def computed(outputs: ByClip, make: Callable[[], T]) -> T:
    """What `make` makes of `outputs`: of few on the event loop, since a thread would hold it longer."""
    few = sum(output.values.size for of_clip in outputs for output in of_clip) <= _FEW_VALUES
    return make() if few else await asyncio.to_thread(make)


def json_answer(content: bytes | str) -> Response:
    return Response(content, media_type="application/json")


def scores(output: Outputs) -> NDArray[np.float32]:
    """A clip's class scores `[C]`, its windows averaged, or the highest of them, as the manifest says."""
    return clip_scores(output.finite(), output.adapter.manifest.input.aggregate)


def clip_embedding(output: Outputs) -> NDArray[np.float32]:
    """A clip's voiceprint, or what an adapter without a head pooled, as it is."""
    return scores(output) if output.adapter.manifest.task_type is TaskType.FEATURES else voiceprint(output.finite())


def heard(output: Outputs) -> list[tuple[float, float]]:
    return [(round(start, 6), round(end, 6)) for start, end in merge(output.spans)]


def clip_info(clip: Clip | Recording) -> ClipInfo:
    return {"seconds": round(clip.seconds, 6), "sampling_rate": clip.source_rate, "channels": clip.channels}
