"""Classify, embed, score: the routes that run the backbone."""

import asyncio
from typing import Annotated, Final

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from service.api import answers
from service.api.auth import INFER, caller_of
from service.api.bodies import is_multipart, read_body
from service.api.clips import read_clips, read_trial
from service.api.lifetime import admitted, while_connected
from service.api.long_json import MAX_PARSED_BYTES, PARSED_SIZE, parse_json
from service.api.openapi import AUDIO_BODY, TRIAL_BODY, errors
from service.api.outputs import ERRORS, answered, infer, json_answer, resolve
from service.api.schemas import ClassifyAnswer, EmbedAnswer, ScoreAnswer, ScoreRequest
from service.engine.engine import Outputs
from service.errors import InvalidRequest
from service.model.spec import TaskType
from service.registry.store import AdapterVersion
from service.scoring.score import MIN_NORM
from service.speakers import sealed as sealing
from service.speakers.vault import Vault

router: Final = APIRouter(tags=["inference"])

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
    responses=errors(*ERRORS),
    openapi_extra=AUDIO_BODY,
)
async def classify(request: Request, adapter: References, top_k: TopK = 5, windows: WithWindows = False) -> Response:
    """Labels of one or more clips by one or more adapters; results by clip, then by adapter as asked."""
    async with admitted(request) as admission:
        adapters = resolve(admission, adapter, TaskType.CLASSIFICATION)
        async with admission.runtime.engine.admit(adapters) as place:  # an overload is told before the body is read
            encoded = await read_clips(admission)
            clips, outputs = await while_connected(request, infer(admission, place, encoded))
        return await answered(outputs, lambda: answers.classification(clips, outputs, top_k, windows))


@router.post(
    "/v1/embed",
    dependencies=[Depends(INFER)],
    response_model=EmbedAnswer,
    responses=errors(*ERRORS),
    openapi_extra=AUDIO_BODY,
)
async def embed(
    request: Request,
    adapter: References,
    sealed: Annotated[bool, Query(description="Answer voiceprints that only this service can read.")] = False,
) -> Response:
    """Voiceprints of one or more clips, of length 1; what adapters without a head pooled is answered as it is."""
    async with admitted(request) as admission:
        tasks = (TaskType.VERIFICATION,) if sealed else (TaskType.VERIFICATION, TaskType.FEATURES)
        adapters = resolve(admission, adapter, *tasks)
        async with admission.runtime.engine.admit(adapters) as place:  # an overload is told before the body is read
            encoded = await read_clips(admission)
            clips, outputs = await while_connected(request, infer(admission, place, encoded))
        vault, domain = admission.runtime.speakers.vault, caller_of(request).grant.domain

        def seal(output: Outputs) -> str:
            return sealing.seal(vault, domain, output.adapter.digest, answers.clip_embedding(output))

        return await answered(outputs, lambda: answers.embeddings(clips, outputs, seal if sealed else None))


@router.post(
    "/v1/score",
    dependencies=[Depends(INFER)],
    response_model=ScoreAnswer,
    responses=errors(*ERRORS),
    openapi_extra=TRIAL_BODY,
)
async def score(request: Request, adapter: References) -> Response:
    """Whether a test clip is of the enrolled speaker: cosine, threshold and decision, if there is enough speech.

    `clip` in a problem counts the parts of the body in their order.
    """
    async with admitted(request) as admission:
        if len(adapter) != 1:
            raise InvalidRequest(f"a score is by one adapter, got {len(adapter)}")
        version = resolve(admission, adapter, TaskType.VERIFICATION)[0]
        if not is_multipart(request):
            body = await read_body(request, MAX_PARSED_BYTES, admission.reservation)
            admission.reservation.add(PARSED_SIZE * len(body))
            vault, domain = admission.runtime.speakers.vault, caller_of(request).grant.domain
            return json_answer(await asyncio.to_thread(_score_vectors, version, body, vault, domain))
        async with admission.runtime.engine.admit([version]) as place:
            encoded, names = await read_trial(admission)
            clips, outputs = await while_connected(request, infer(admission, place, encoded))
        return await answered(outputs, lambda: answers.trial(version, clips, [one[0] for one in outputs], names))


def _score_vectors(version: AdapterVersion, body: bytes, vault: Vault, domain: str) -> bytes:
    """Scores embeddings or sealed voiceprints that the caller sent as JSON.

    Raises:
        InvalidRequest: not the shape asked for, sealed for others, not of the adapter's
            dimension, or without direction.
    """
    trial = parse_json(body, ScoreRequest)

    def opened(given: list[float] | str) -> list[float]:
        return sealing.unseal(vault, domain, version.digest, given).tolist() if isinstance(given, str) else given

    enrolment, test = [opened(one) for one in trial.enrolment], opened(trial.test)
    dimension = version.manifest.embedding_dim
    for vector in (*enrolment, test):
        if len(vector) != dimension:
            raise InvalidRequest(f"embeddings of {version.name!r} have {dimension} numbers, got {len(vector)}")
        with np.errstate(over="ignore"):
            length = float(np.linalg.norm(vector))
        if not MIN_NORM <= length < np.inf:
            raise InvalidRequest("an embedding must have a length above 0 that can be computed")
    return answers.score(version, enrolment, test)
