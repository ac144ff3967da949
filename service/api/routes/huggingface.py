"""The form of Hugging Face's inference endpoints, so that `InferenceClient.audio_classification` works as it is."""

import asyncio
from typing import Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.api import answers
from service.api.auth import INFER
from service.api.bodies import is_multipart, read_body
from service.api.clips import filled, read_clips
from service.api.lifetime import Admission, admitted, while_connected
from service.api.long_json import set_aside
from service.api.openapi import HUB_BODY, errors
from service.api.outputs import ERRORS, answered, infer, resolve
from service.api.schemas import HubParameters, HubRequest, LabelScore
from service.errors import InvalidRequest
from service.model.spec import TaskType
from service.registry.store import AdapterVersion

router: Final = APIRouter(tags=["inference"])


@router.post(
    "/v1/huggingface/{adapter}",
    dependencies=[Depends(INFER)],
    response_model=list[LabelScore],
    responses=errors(*ERRORS),
    openapi_extra=HUB_BODY,
)
async def huggingface(request: Request, adapter: str) -> Response:
    """Labels of one clip in Hugging Face's form; `adapter` is `name`, `name@2` or `name@alias`.

    With huggingface_hub: `InferenceClient(model=".../v1/huggingface/digits").audio_classification("clip.wav")`.
    """
    async with admitted(request) as admission:
        version = resolve(admission, [adapter], TaskType.CLASSIFICATION)[0]
        async with admission.runtime.engine.admit([version]) as place:
            clip, parameters = await _read(admission)
            _check(version, parameters)
            _, outputs = await while_connected(request, infer(admission, place, [clip]))
        return await answered(outputs, lambda: answers.labels(outputs[0][0], parameters.top_k or 0))


async def _read(admission: Admission) -> tuple[bytes, HubParameters]:
    """The clip and what is asked of it: raw bytes, a multipart part, or base64 in JSON where there are parameters."""
    request = admission.request
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = await read_body(request, admission.context.settings.max_body_bytes, admission.reservation)
        document = await asyncio.to_thread(set_aside, body)
        admission.reservation.add(document.parsed_bytes)

        def unpack() -> tuple[bytes, HubParameters]:
            asked = document.parse(HubRequest)
            return filled(document.unpack(asked.inputs, "body.inputs")), asked.parameters or HubParameters()

        return await asyncio.to_thread(unpack)
    clips = await read_clips(admission)
    if is_multipart(request) and len(clips) != 1:
        raise InvalidRequest(f"this call takes one clip, got {len(clips)}; /v1/classify takes several")
    return clips[0], HubParameters()


def _check(version: AdapterVersion, parameters: HubParameters) -> None:
    """Scores come out of the adapter's own activation: what its calibration and its training mean by a score."""
    wanted, own = parameters.function_to_apply, version.manifest.activation
    if wanted is not None and wanted != own:
        raise InvalidRequest(f"body.parameters.function_to_apply: {version.name!r} answers by {own}, got {wanted!r}")
