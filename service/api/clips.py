"""From a request's body to encoded clips: which of its parts are some. Knows no adapters."""

from service.api.bodies import is_multipart, read_body, read_parts
from service.api.lifetime import Admission
from service.errors import InvalidRequest


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


def filled(content: bytes, clip: int = 0) -> bytes:
    """The encoded clip itself; raises InvalidRequest where it is empty."""
    if not content:
        raise InvalidRequest("the clip is empty; send the bytes of an audio file", clip=clip)
    return content
