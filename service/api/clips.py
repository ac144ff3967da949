"""From a request's body to waveforms: which parts are clips, decoded beside the event loop. Knows no adapters."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from service.api.bodies import Reservation, is_multipart, read_body, read_parts
from service.api.context import Context
from service.api.lifetime import Admission
from service.audio.decode import DecodeLimits, decode
from service.audio.waveform import Waveform
from service.errors import AudioTooLong, InvalidRequest, ServiceError


async def read_clips(admission: Admission) -> list[bytes]:
    """The encoded clips of a body: the raw body itself, whatever its Content-Type, or its `audio` parts.

    Raises:
        InvalidRequest: no clip, an empty one, or more than the service takes.
    """
    request, settings = admission.request, admission.context.settings
    if not is_multipart(request):
        return [filled(await read_body(request, settings.max_body_bytes, admission.reservation))]
    parts = await read_parts(request, ("audio",), settings.max_clips, settings.max_body_bytes, admission.reservation)
    if not parts:
        raise InvalidRequest("the multipart body has no part 'audio'; send each clip as one")
    return [filled(content, clip) for clip, (_, content) in enumerate(parts)]


async def read_trial(admission: Admission) -> tuple[list[bytes], list[str]]:
    """The encoded clips of a verification trial, and the name of the part that each came in.

    Raises:
        InvalidRequest: not one `test` part and at least one `enrolment` part.
    """
    request, settings = admission.request, admission.context.settings
    parts = await read_parts(
        request, ("enrolment", "test"), settings.max_clips, settings.max_body_bytes, admission.reservation
    )
    names = [name for name, _ in parts]
    tests = names.count("test")
    if tests != 1 or len(names) < 2:
        raise InvalidRequest(
            f"a score needs one part 'test' and one or more parts 'enrolment', got {tests} and {len(names) - tests}"
        )
    return [filled(content, clip) for clip, (_, content) in enumerate(parts)], names


async def decode_clips(
    context: Context, encoded: Sequence[bytes], reservation: Reservation, flow: str, *, speech: bool = False
) -> list[Waveform]:
    """Decodes every clip once; flows take turns, so that who sends many clips does not hold up the others.

    Args:
        speech: whether to find how long somebody speaks in them.

    Raises:
        BadAudio, AudioTooLong: with the index of the clip at fault.
    """
    loop = asyncio.get_running_loop()
    most = context.settings.max_request_seconds
    total = 0.0  # seconds of audio decoded so far

    async def one(clip: int, content: bytes) -> Waveform:
        nonlocal total
        async with context.decoding.turn(flow):
            try:
                waveform = await loop.run_in_executor(context.decoders, _decode, context, content, speech)
                reservation.add(waveform.samples.nbytes)
                total += waveform.seconds
                if total > most:
                    raise AudioTooLong(f"the request's clips are longer than {most:g} s together; send fewer at once")
            except ServiceError as error:
                error.clip = clip
                raise
            return waveform

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(clip, content)) for clip, content in enumerate(encoded)]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _decode(context: Context, content: bytes, speech: bool) -> Waveform:
    with context.telemetry.decode_seconds.time():
        waveform = decode(content, DecodeLimits(max_seconds=context.settings.max_audio_seconds))
    context.telemetry.audio_seconds_total.inc(waveform.seconds)
    if speech:
        return replace(waveform, speech_seconds=context.activity.speech_seconds(waveform.samples))
    return waveform


def filled(content: bytes, clip: int = 0) -> bytes:
    """The encoded clip itself; raises InvalidRequest where it is empty."""
    if not content:
        raise InvalidRequest("the clip is empty; send the bytes of an audio file", clip=clip)
    return content
