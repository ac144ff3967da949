"""From adapters as a request names them, and its clips, to the engine's outputs. Knows no answers and no routes."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from starlette.responses import Response

from service.api.lifetime import Admission
from service.engine.engine import Outputs, Place
from service.engine.job import key_of
from service.engine.prepare import Clip
from service.errors import InvalidRequest, WrongTask
from service.model.spec import TaskType
from service.registry.store import AdapterVersion

_FEW_VALUES: Final = 1024
ByClip = Sequence[Sequence[Outputs]]  # outputs by clip, then by adapter as asked

ERRORS: Final = (  # what any route that runs the backbone may answer
    *("invalid_request", "bad_audio", "audio_too_long", "payload_too_large", "unknown_adapter", "unknown_version"),
    *("wrong_task", "backbone_mismatch", "unauthorized", "forbidden", "adapter_failed", "overloaded", "no_free_slot"),
    *("not_ready", "deadline_exceeded", "internal"),
)


def resolve(admission: Admission, references: Sequence[str], *tasks: TaskType) -> list[AdapterVersion]:
    """The versions that a request asks for; it runs on these, whatever happens to aliases meanwhile.

    Raises:
        InvalidRequest: more adapters than a request may ask.
        UnknownAdapter, UnknownVersion, WrongTask: with the reference at fault.
    """
    most = admission.context.settings.max_adapters
    if len(references) > most:
        raise InvalidRequest(f"a request may ask at most {most} adapters, got {len(references)}")
    versions = [admission.runtime.registry.resolve(reference) for reference in references]
    for reference, version in zip(references, versions, strict=True):
        if version.manifest.task_type not in tasks:
            wanted = " or ".join(task.value for task in tasks)
            raise WrongTask(
                f"{reference!r} is for {version.manifest.task_type.value}; this call needs {wanted}",
                adapter=reference,
            )
    return versions


async def infer(admission: Admission, place: Place, encoded: Sequence[bytes]) -> tuple[list[Clip], ByClip]:
    """Every clip decoded once, and what every adapter makes of it."""
    state = admission.request.state
    state.adapters = [adapter.reference for adapter in place.adapters]
    began = decoded = time.perf_counter_ns()
    failed = True
    try:
        clips = await place.prepare(encoded, admission.reservation.add)
        decoded = time.perf_counter_ns()
        state.audio_seconds = round(sum(clip.seconds for clip in clips), 3)
        outputs = await place.infer(clips, admission.deadline)
        failed = False
        return clips, outputs
    finally:
        versions = [key_of(adapter) for adapter in place.adapters]
        admission.context.statistics.count(versions, len(encoded), began, decoded, failed)


async def answered(outputs: ByClip, make: Callable[[], bytes]) -> Response:
    """The JSON that `make` makes of `outputs`: what is little on the event loop, which a thread would hold longer."""
    return json_answer(make() if few_values(outputs) else await asyncio.to_thread(make))


def few_values(outputs: ByClip) -> bool:
    """Whether what is made of `outputs` is made faster than a thread is woken."""
    return sum(output.values.size for of_clip in outputs for output in of_clip) <= _FEW_VALUES


def json_answer(content: bytes) -> Response:
    """An answer of inference: already JSON, and not to be stored on its way."""
    return Response(content, media_type="application/json", headers={"Cache-Control": "no-store"})
