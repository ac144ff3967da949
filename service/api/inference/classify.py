"""Classification: labels of clips, in the service's own form and in that of Hugging Face's inference endpoints."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter
from starlette.responses import Response

from service.answers import Classification, ClassifyAnswer, LabelScore
from service.api.bodies import is_multipart
from service.api.call import Call
from service.api.inference.asking import (
    ROUTE,
    ByClip,
    References,
    clip_info,
    computed,
    filled,
    heard,
    infer,
    json_answer,
    read_clips,
    resolve,
    scores,
)
from service.api.long_json import set_aside
from service.api.openapi import AUDIO_BODY, BYTES, body
from service.engine.engine import Outputs
from service.engine.prepare import Clip
from service.errors import InvalidRequest
from service.model.spec import TaskType
from service.scoring.score import rank

router: Final = APIRouter(tags=["inference"])

TopK = Annotated[int, Query(ge=0, description="Labels to answer, best first; 0 is all of them.")]
WithWindows = Annotated[bool, Query(description="Answer the labels of every window too.")]


class HubParameters(BaseModel):
    """What Hugging Face's clients may ask of an audio classification; anything else is ignored, as there."""

    top_k: int | None = Field(default=5, ge=0, description="Labels to answer, best first; 0 or null is all of them.")
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = Field(
        default=None, description="The adapter's own activation, or nothing."
    )


class HubRequest(BaseModel):
    inputs: str = Field(description="The audio file's bytes in base64, in lines or not, or as a data URL.")
    parameters: HubParameters | None = None


_ANSWER: Final = TypeAdapter(ClassifyAnswer)
_LABELS: Final = TypeAdapter(list[LabelScore])
_HUB_BODY: Final = body(
    {"audio/*": BYTES, "application/octet-stream": BYTES, "application/json": HubRequest},
    "One clip as the raw body, or in base64 with parameters, as JSON.",
)


@router.post("/v1/classify", response_model=ClassifyAnswer, openapi_extra=AUDIO_BODY, **ROUTE)
async def classify(call: Call, adapter: References, top_k: TopK = 5, windows: WithWindows = False) -> Response:
    """Labels of one or more clips by one or more adapters; results by clip, then by adapter as asked."""
    adapters = resolve(call, adapter, TaskType.CLASSIFICATION)
    async with call.runtime.engine.admit(adapters) as place:  # an overload is told before the body is read
        clips, outputs = await infer(call, place, await read_clips(call))
    return json_answer(await computed(outputs, lambda: _classified(clips, outputs, top_k, windows)))


@router.post("/v1/huggingface/{adapter}", response_model=list[LabelScore], openapi_extra=_HUB_BODY, **ROUTE)
async def huggingface(call: Call, adapter: str) -> Response:
    """Labels of one clip in Hugging Face's form; `adapter` is `name`, `name@2` or `name@alias`.

    With huggingface_hub: `InferenceClient(model=".../v1/huggingface/digits").audio_classification("clip.wav")`.
    """
    version = resolve(call, [adapter], TaskType.CLASSIFICATION)[0]
    async with call.runtime.engine.admit([version]) as place:
        encoded, asked = await _read(call)
        wanted, own = asked.function_to_apply, version.manifest.activation
        if wanted is not None and wanted != own:  # scores mean what calibration and training took them for
            told = f"{version.name!r} answers by {own}, got {wanted!r}"
            raise InvalidRequest(f"body.parameters.function_to_apply: {told}")
        _, outputs = await infer(call, place, encoded)
    output = outputs[0][0]
    return json_answer(
        await computed(outputs, lambda: _LABELS.dump_json(_ranked(output, scores(output), asked.top_k or 0)))
    )


async def _read(call: Call) -> tuple[list[bytes], HubParameters]:
    """The clip and what is asked of it: raw bytes, a multipart part, or base64 in JSON where there are parameters."""
    kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        content = await call.read(call.context.settings.max_body_bytes)
        document = await asyncio.to_thread(set_aside, content)
        call.reservation.add(document.parsed_bytes)

        def unpack() -> tuple[list[bytes], HubParameters]:
            asked = document.parse(HubRequest)
            return filled([document.unpack(asked.inputs, "body.inputs")]), asked.parameters or HubParameters()

        return await asyncio.to_thread(unpack)
    clips = await read_clips(call)
    if is_multipart(call) and len(clips) != 1:
        raise InvalidRequest(f"this call takes one clip, got {len(clips)}; /v1/classify takes several")
    return clips, HubParameters()


def _classified(clips: Sequence[Clip], outputs: ByClip, top_k: int, with_windows: bool) -> bytes:
    results = [
        _classification(clip, output, top_k, with_windows) for clip, of_clip in enumerate(outputs) for output in of_clip
    ]
    return _ANSWER.dump_json({"results": results, "audio": [clip_info(clip) for clip in clips]})


def _classification(clip: int, output: Outputs, top_k: int, with_windows: bool) -> Classification:
    adapter, best = output.adapter, scores(output)
    told: Classification = {
        "clip": clip,
        "adapter": adapter.name,
        "version": adapter.version,
        "labels": _ranked(output, best, top_k),
        "heard": heard(output),
    }
    if adapter.manifest.reject_below is not None and best.max() < adapter.manifest.reject_below:
        told["unknown"] = True
    if with_windows:
        told["windows"] = [
            {"start": start, "end": end, "labels": _ranked(output, row, top_k)}
            for (start, end), row in zip(output.spans, output.finite(), strict=True)
        ]
    return told


def _ranked(output: Outputs, values: NDArray[np.float32], top_k: int) -> list[LabelScore]:
    labels = output.adapter.manifest.labels or ()
    return [{"label": label, "score": score} for label, score in rank(labels, values, top_k)]
