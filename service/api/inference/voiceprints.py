"""Voiceprints: embeddings of clips, and the score of two sides of a trial; nothing is kept."""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Final, cast

import numpy as np
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, FailFast, Field, FiniteFloat, TypeAdapter
from starlette.responses import Response

from service.answers import EmbedAnswer, Embedding, ScoreAnswer, SpeechSeconds
from service.api.bodies import is_multipart, read_parts
from service.api.call import Call
from service.api.inference.asking import (
    ROUTE,
    ByClip,
    References,
    clip_embedding,
    clip_info,
    cohort_of,
    computed,
    filled,
    heard,
    infer,
    json_answer,
    read_clips,
    resolve,
)
from service.api.long_json import MAX_PARSED_BYTES, PARSED_SIZE, parse_json
from service.api.openapi import AUDIO_BODY, BYTES, CLIPS, body, form
from service.engine.engine import Outputs
from service.engine.prepare import Clip
from service.errors import AdapterFailed, InvalidRequest
from service.model.spec import TaskType
from service.registry.store import AdapterVersion
from service.scoring.cohort import Cohort
from service.scoring.score import MIN_NORM, enrol, l2_normalise, voiceprint
from service.speakers.speaker import Reference
from service.speakers.verifying import DEFAULT, Threshold, compare

router: Final = APIRouter(tags=["inference"])

Vector = Annotated[list[FiniteFloat], Field(min_length=1, fail_fast=True)]  # thousands of faults cost more than one
Sealed = Annotated[str, Field(max_length=2**15, description="As /v1/embed answers it with `sealed=true`.")]


class ScoreRequest(BaseModel):
    """Embeddings or sealed voiceprints to compare, as /v1/embed answers them."""

    model_config = ConfigDict(extra="forbid")

    enrolment: Annotated[list[Vector | Sealed], Field(min_length=1), FailFast()]
    test: Vector | Sealed


_EMBEDDED: Final = TypeAdapter(EmbedAnswer)
_SCORED: Final = TypeAdapter(ScoreAnswer)
_TRIAL_BODY: Final = body(
    {
        "multipart/form-data": form("enrolment", "test", enrolment=CLIPS, test=BYTES),
        "application/json": ScoreRequest,
    },
    "Clips to enrol and one to test, or embeddings of such clips.",
)


@router.post("/v1/embed", response_model=EmbedAnswer, openapi_extra=AUDIO_BODY, **ROUTE)
async def embed(
    call: Call,
    adapter: References,
    sealed: Annotated[bool, Query(description="Answer voiceprints that only this service can read.")] = False,
) -> Response:
    """Voiceprints of one or more clips, of length 1; what adapters without a head pooled is answered as it is."""
    tasks = (TaskType.VERIFICATION,) if sealed else (TaskType.VERIFICATION, TaskType.FEATURES)
    async with call.runtime.engine.admit(resolve(call, adapter, *tasks)) as place:
        clips, outputs = await infer(call, place, await read_clips(call))
    vault, domain = call.runtime.speakers.vault, call.caller.grant.domain

    def seal(output: Outputs) -> str:
        return vault.seal(domain, output.adapter.digest, clip_embedding(output))

    return json_answer(await computed(outputs, lambda: _embedded(clips, outputs, seal if sealed else None)))


@router.post("/v1/score", response_model=ScoreAnswer, openapi_extra=_TRIAL_BODY, **ROUTE)
async def score(call: Call, adapter: References) -> Response:
    """Whether a test clip is of the enrolled speaker: cosine, threshold and decision, if there is enough speech.

    `clip` in a problem counts the parts of the body in their order.
    """
    if len(adapter) != 1:
        raise InvalidRequest(f"a score is by one adapter, got {len(adapter)}")
    version = resolve(call, adapter, TaskType.VERIFICATION)[0]
    cohort = await cohort_of(call, version)
    if not is_multipart(call):
        content = await call.read(MAX_PARSED_BYTES)
        call.reservation.add(PARSED_SIZE * len(content))
        return json_answer(await asyncio.to_thread(_score_vectors, call, version, cohort, content))
    async with call.runtime.engine.admit([version]) as place:
        encoded, names = await _read_trial(call)
        clips, outputs = await infer(call, place, encoded)
    return json_answer(
        await computed(outputs, lambda: _score_clips(version, cohort, clips, [one[0] for one in outputs], names))
    )


async def _read_trial(call: Call) -> tuple[list[bytes], list[str]]:
    """The encoded clips of a verification trial, and the name of the part that each came in.

    Raises:
        InvalidRequest: not one `test` part and at least one `enrolment` part.
    """
    settings = call.context.settings
    parts = await read_parts(call, ("enrolment", "test"), settings.max_clips, settings.max_body_bytes, call.reservation)
    names = [name for name, _ in parts]
    tests = names.count("test")
    if tests != 1 or len(names) < 2:
        raise InvalidRequest(
            f"a score needs one part 'test' and one or more parts 'enrolment', got {tests} and {len(names) - tests}"
        )
    return filled([content for _, content in parts]), names


def _embedded(clips: Sequence[Clip], outputs: ByClip, seal: Callable[[Outputs], str] | None) -> bytes:
    """The answer to /v1/embed. Where voiceprints are to be sealed, `seal` does it."""
    results: list[Embedding] = []
    for clip, of_clip in enumerate(outputs):
        for output in of_clip:
            told: Embedding = {
                "clip": clip,
                "adapter": output.adapter.name,
                "version": output.adapter.version,
                "speech_seconds": clips[clip].speech_seconds or 0.0,
                "heard": heard(output),
            }
            if seal:
                told["sealed"] = seal(output)
            else:
                told["embedding"] = clip_embedding(output).tolist()
            results.append(told)
    return _EMBEDDED.dump_json({"results": results, "audio": [clip_info(clip) for clip in clips]})


def _score_clips(
    adapter: AdapterVersion,
    cohort: Cohort | None,
    clips: Sequence[Clip],
    outputs: Sequence[Outputs],
    names: Sequence[str],
) -> bytes:
    """Scores clips, told apart by the names of their parts: enrolment and test."""
    prints: list[list[float]] = [voiceprint(output.finite()).tolist() for output in outputs]
    seconds = [clip.speech_seconds or 0.0 for clip in clips]
    test = names.index("test")
    enrolment = [index for index, name in enumerate(names) if name == "enrolment"]
    speech: SpeechSeconds = {
        "enrolment": round(sum(seconds[index] for index in enrolment), 6),
        "test": seconds[test],
    }
    return _score(adapter, cohort, [prints[index] for index in enrolment], prints[test], speech)


def _score_vectors(call: Call, adapter: AdapterVersion, cohort: Cohort | None, content: bytes) -> bytes:
    """Scores embeddings or sealed voiceprints that the caller sent as JSON.

    Raises:
        InvalidRequest: not the shape asked for, sealed for others, not of the adapter's
            dimension, or without direction.
    """
    trial = parse_json(content, ScoreRequest)
    vault, domain = call.runtime.speakers.vault, call.caller.grant.domain

    def opened(given: list[float] | str) -> list[float]:
        return vault.unseal(domain, adapter.digest, given).tolist() if isinstance(given, str) else given

    enrolment, test = [opened(one) for one in trial.enrolment], opened(trial.test)
    dimension = adapter.manifest.embedding_dim
    for vector in (*enrolment, test):
        if len(vector) != dimension:
            raise InvalidRequest(f"embeddings of {adapter.name!r} have {dimension} numbers, got {len(vector)}")
        with np.errstate(over="ignore"):
            length = float(np.linalg.norm(vector))
        if not MIN_NORM <= length < np.inf:
            raise InvalidRequest("an embedding must have a length above 0 that can be computed")
    return _score(adapter, cohort, enrolment, test, None)


def _score(
    adapter: AdapterVersion,
    cohort: Cohort | None,
    enrolment: Sequence[Sequence[float]],
    test: Sequence[float],
    speech: SpeechSeconds | None,
) -> bytes:
    """The cosine of the enrolment and the test embedding, and what the adapter makes of it.

    Args:
        cohort: where the adapter normalises scores.
        speech: how long somebody speaks on each side, where there were clips.
    """
    manifest = adapter.manifest
    if manifest.threshold is None:
        raise AdapterFailed("the adapter has no threshold to decide by", adapter=adapter.name)
    seconds = math.inf if speech is None else min(speech["enrolment"], speech["test"])
    reference, threshold = Reference(enrol(enrolment), 1.0), Threshold(manifest.threshold, DEFAULT)
    verdict = compare(manifest, cohort, [reference], l2_normalise(test), seconds, threshold)
    told: dict[str, object] = {
        "adapter": adapter.name,
        "version": adapter.version,
        "score": verdict.score,
        "threshold": manifest.threshold,
        "decision": verdict.decision,
        "speech_seconds": speech,
    }
    if cohort is not None:
        told["normalised_score"] = verdict.normalised_score
    if verdict.log_likelihood_ratio is not None:
        told["log_likelihood_ratio"] = verdict.log_likelihood_ratio
    return _SCORED.dump_json(cast(ScoreAnswer, told))
