"""From adapters as a request names them, and its clips, to the engine's outputs. Knows no answers and no routes."""

import time
from collections.abc import Sequence
from typing import Final

from starlette.responses import Response

from service.api.clips import decode_clips
from service.api.lifetime import Admission
from service.audio.waveform import Waveform
from service.engine.engine import Outputs
from service.errors import InvalidRequest, WrongTask
from service.model.spec import TaskType
from service.registry.store import AdapterVersion

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


async def infer(
    admission: Admission, encoded: Sequence[bytes], adapters: Sequence[AdapterVersion]
) -> tuple[list[Waveform], list[list[Outputs]]]:
    """Every clip decoded once, and what every adapter makes of it: outputs by clip, then by adapter as asked.

    Nothing is decoded that the queue has no room for, and adapters take turns at the decoders.
    """
    engine, state = admission.runtime.engine, admission.request.state
    state.adapters = [f"{adapter.name}@{adapter.version}" for adapter in adapters]
    began = decoded = time.perf_counter_ns()
    failed = True
    try:
        with engine.place(adapters, len(encoded)) as place:
            speech = adapters[0].manifest.task_type is not TaskType.CLASSIFICATION
            clips = await decode_clips(
                admission.context, encoded, admission.reservation, adapters[0].name, speech=speech
            )
            decoded = time.perf_counter_ns()
            state.audio_seconds = round(sum(clip.seconds for clip in clips), 3)
            outputs = await engine.infer(clips, adapters, deadline=admission.deadline, place=place)
        failed = False
        return clips, outputs
    finally:
        versions = [(adapter.name, adapter.version) for adapter in adapters]
        admission.context.statistics.count(versions, len(encoded), began, decoded, failed)


def json_answer(content: bytes) -> Response:
    """An answer of inference: already JSON, and not to be stored on its way."""
    return Response(content, media_type="application/json", headers={"Cache-Control": "no-store"})
