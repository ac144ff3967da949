"""Typed errors of the service. Knows nothing of HTTP: `api/problems.py` maps each code to a status."""

import re
from typing import ClassVar


class ServiceError(Exception):
    """Base of every error that a user of the service can meet; its code is the name of its class, in lower case.

    Args:
        detail: what was wrong and what would be right, for the caller to read.
        clip: index of the offending clip in the request, where there is one.
        adapter: reference of the offending adapter, where there is one.
        at: where in a recording it was, seconds, once that is known.
        retry_after: seconds after which another try makes sense, where that is known.
    """

    code: ClassVar[str] = "internal"

    def __init_subclass__(cls) -> None:
        if ServiceError in cls.__bases__:
            cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def __init__(
        self,
        detail: str,
        *,
        clip: int | None = None,
        adapter: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.clip = clip
        self.adapter = adapter
        self.retry_after = retry_after
        self.at: float | None = None


class InvalidRequest(ServiceError): ...


class BadAudio(ServiceError): ...


class ClipTooShort(BadAudio):
    """Fewer samples than one analysis frame."""


class AudioTooLong(ServiceError): ...


class PayloadTooLarge(ServiceError): ...


class NotAcceptable(ServiceError):
    """Raised where an answer has none of the media types that a request accepts."""


class UnknownAdapter(ServiceError): ...


class UnknownVersion(ServiceError):
    """Raised for a version or an alias that the adapter does not have."""


class WrongTask(ServiceError): ...


class BackboneMismatch(ServiceError): ...


class InvalidBundle(ServiceError): ...


class Unauthorized(ServiceError): ...


class Forbidden(ServiceError): ...


class VersionIsLive(ServiceError): ...


class NoFreeSlot(ServiceError): ...


class AdapterFailed(ServiceError): ...


class Overloaded(ServiceError): ...


class RateLimited(ServiceError):
    """Raised where a key's rate or its number of requests in flight is used up."""


class NotReady(ServiceError): ...


class DeadlineExceeded(ServiceError): ...


class StorageFull(ServiceError): ...


class RegistryUnavailable(ServiceError):
    """The registry's database cannot be reached: what is known is served, nothing can be changed."""


class UnknownSpeaker(ServiceError):
    """Raised for a speaker, or an enrolment, that the caller's domain does not have."""


class UnknownJob(ServiceError):
    """Raised for a job that the caller's domain does not have."""


class SpeakerOptedOut(ServiceError): ...


class ConsentRequired(ServiceError): ...


class Conflict(ServiceError):
    """Raised where another change of the same thing came between."""


class Internal(ServiceError): ...
