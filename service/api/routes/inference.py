"""Classify, embed, score: the routes that run the backbone."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Final

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from pydantic import ValidationError
from starlette.responses import Response

from service.api import answers
from service.api.auth import INFER
from service.api.bodies import MAX_JSON_BYTES, is_multipart, read_body
from service.api.clips import decode_clips, read_clips, read_trial
from service.api.lifetime import Admission, admitted, while_connected
from service.api.openapi import AUDIO_BODY, TRIAL_BODY, errors
from service.api.problems import describe
from service.api.schemas import ClassifyAnswer, EmbedAnswer, ScoreAnswer, ScoreRequest
from service.audio.waveform import Waveform
from service.engine.engine import Outputs
from service.errors import InvalidRequest, WrongTask
from service.model.spec import TaskType
from service.registry.store import AdapterVersion
from service.scoring.score import MIN_NORM

router: Final = APIRouter(tags=["inference"])

_ERRORS: Final = (
    *("invalid_request", "bad_audio", "audio_too_long", "payload_too_large", "unknown_adapter"),
    *(
        "unknown_version",
        "wrong_task",
        "backbone_mismatch",
        "unauthorized",
        "forbidden",
        "adapter_failed",
        "overloaded",
    ),
    *("no_free_slot", "not_ready", "deadline_exceeded", "internal"),
)
References = Annotated[
    list[str],
    Query(min_length=1, description="`name`, `name@2` or `name@alias`; repeat it to ask several adapters at once."),
]
TopK = Annotated[int, Query(ge=0, description="Labels to answer, best first; 0 is all of them.")]
WithWindows = Annotated[bool, Query(description="Answer the labels of every window too.")]


@router.post(
    "/v1/classify",
    dependencies=[Depends(INFER)],
    response_model=ClassifyAnswer,
    responses=errors(*_ERRORS),
    openapi_extra=AUDIO_BODY,
)
async def classify(request: Request, adapter: References, top_k: TopK = 5, windows: WithWindows = False) -> Response:
    """Labels of one or more clips by one or more adapters; results by clip, then by adapter as asked."""
    async with admitted(request) as admission:
        adapters = _resolve(admission, adapter, TaskType.CLASSIFICATION)
        encoded = await read_clips(admission)

        async def run() -> bytes:
            clips, outputs = await _infer(admission, encoded, adapters)
            return await asyncio.to_thread(answers.classification, clips, outputs, top_k, windows)

        return _answer(await while_connected(request, run()))


@router.post(
    "/v1/embed",
    dependencies=[Depends(INFER)],
    response_model=EmbedAnswer,
    responses=errors(*_ERRORS),
    openapi_extra=AUDIO_BODY,
)
async def embed(request: Request, adapter: References) -> Response:
    """Voiceprints of one or more clips, of length 1, by speaker-verification adapters."""
    async with admitted(request) as admission:
        adapters = _resolve(admission, adapter, TaskType.VERIFICATION)
        encoded = await read_clips(admission)

        async def run() -> bytes:
            clips, outputs = await _infer(admission, encoded, adapters)
            return await asyncio.to_thread(answers.embeddings, clips, outputs)

        return _answer(await while_connected(request, run()))


@router.post(
    "/v1/score",
    dependencies=[Depends(INFER)],
    response_model=ScoreAnswer,
    response_model_exclude_none=True,
    responses=errors(*_ERRORS),
    openapi_extra=TRIAL_BODY,
)
async def score(request: Request, adapter: References) -> Response:
    """Whether a test clip is of the enrolled speaker: cosine, threshold and decision.

    `clip` in a problem counts the parts of the body in their order.
    """
    async with admitted(request) as admission:
        if len(adapter) != 1:
            raise InvalidRequest(f"a score is by one adapter, got {len(adapter)}")
        version = _resolve(admission, adapter, TaskType.VERIFICATION)[0]
        if not is_multipart(request):
            body = await read_body(request, MAX_JSON_BYTES, admission.reservation)
            return _answer(await asyncio.to_thread(_score_vectors, version, body))
        encoded, names = await read_trial(admission)

        async def run() -> bytes:
            _, outputs = await _infer(admission, encoded, [version])
            enrolment, test = answers.trial_vectors([of_clip[0] for of_clip in outputs], names)
            return answers.score(version, enrolment, test)

        return _answer(await while_connected(request, run()))


def _resolve(admission: Admission, references: Sequence[str], task: TaskType) -> list[AdapterVersion]:
    """The versions that a request asks for; it runs on these, whatever happens to aliases meanwhile."""
    most = admission.context.settings.max_adapters
    if len(references) > most:
        raise InvalidRequest(f"a request may ask at most {most} adapters, got {len(references)}")
    versions = [admission.runtime.registry.resolve(reference) for reference in references]
    for reference, version in zip(references, versions, strict=True):
        if version.manifest.task_type is not task:
            raise WrongTask(
                f"{reference!r} is for {version.manifest.task_type.value}; this call needs {task.value}",
                adapter=reference,
            )
    return versions


async def _infer(
    admission: Admission, encoded: Sequence[bytes], adapters: Sequence[AdapterVersion]
) -> tuple[list[Waveform], list[list[Outputs]]]:
    clips = await decode_clips(admission.context, encoded, admission.reservation)
    return clips, await admission.runtime.engine.infer(clips, adapters, deadline=admission.deadline)


def _score_vectors(version: AdapterVersion, body: bytes) -> bytes:
    """Scores embeddings that the caller sent as JSON.

    Raises:
        InvalidRequest: not the shape asked for, not of the adapter's dimension, or without direction.
    """
    if not body:
        raise InvalidRequest("the body is empty; send multipart clips or JSON with 'enrolment' and 'test'")
    try:
        trial = ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        raise InvalidRequest("; ".join(describe(item, "body") for item in error.errors()[:3])) from error
    dimension = version.manifest.embedding_dim
    for vector in (*trial.enrolment, trial.test):
        if len(vector) != dimension:
            raise InvalidRequest(f"embeddings of {version.name!r} have {dimension} numbers, got {len(vector)}")
        with np.errstate(over="ignore"):
            length = float(np.linalg.norm(vector))
        if not MIN_NORM <= length < np.inf:
            raise InvalidRequest("an embedding must have a length above 0 that can be computed")
    return answers.score(version, trial.enrolment, trial.test)


def _answer(content: bytes) -> Response:
    return Response(content, media_type="application/json", headers={"Cache-Control": "no-store"})
