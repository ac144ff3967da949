"""Typed errors of the service. Knows nothing of HTTP: `api/problems.py` maps each code to a status."""

from typing import ClassVar


class ServiceError(Exception):
    """Base of every error that a user of the service can meet.

    Args:
        detail: what was wrong and what would be right, for the caller to read.
        clip: index of the offending clip in the request, where there is one.
        adapter: reference of the offending adapter, where there is one.
        retry_after: seconds after which another try makes sense, where that is known.
    """

    code: ClassVar[str] = "internal"

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


class InvalidRequest(ServiceError):
    code = "invalid_request"


class BadAudio(ServiceError):
    code = "bad_audio"


class ClipTooShort(BadAudio):
    """Fewer samples than one analysis frame."""


class AudioTooLong(ServiceError):
    code = "audio_too_long"


class PayloadTooLarge(ServiceError):
    code = "payload_too_large"


class UnknownAdapter(ServiceError):
    code = "unknown_adapter"


class UnknownVersion(ServiceError):
    """Raised for a version or an alias that the adapter does not have."""

    code = "unknown_version"


class WrongTask(ServiceError):
    code = "wrong_task"


class BackboneMismatch(ServiceError):
    code = "backbone_mismatch"


class InvalidBundle(ServiceError):
    code = "invalid_bundle"


class Unauthorized(ServiceError):
    code = "unauthorized"


class Forbidden(ServiceError):
    code = "forbidden"


class VersionIsLive(ServiceError):
    code = "version_is_live"


class NoFreeSlot(ServiceError):
    code = "no_free_slot"


class AdapterFailed(ServiceError):
    code = "adapter_failed"


class Overloaded(ServiceError):
    code = "overloaded"


class RateLimited(ServiceError):
    """Raised where a key's rate or its number of requests in flight is used up."""

    code = "rate_limited"


class NotReady(ServiceError):
    code = "not_ready"


class DeadlineExceeded(ServiceError):
    code = "deadline_exceeded"


class StorageFull(ServiceError):
    code = "storage_full"


class RegistryUnavailable(ServiceError):
    """The registry's database cannot be reached: what is known is served, nothing can be changed."""

    code = "registry_unavailable"


class UnknownSpeaker(ServiceError):
    """Raised for a speaker, or an enrolment, that the caller's domain does not have."""

    code = "unknown_speaker"


class SpeakerOptedOut(ServiceError):
    code = "speaker_opted_out"


class ConsentRequired(ServiceError):
    code = "consent_required"


class Conflict(ServiceError):
    """Raised where another change of the same thing came between."""

    code = "conflict"


class Internal(ServiceError):
    code = "internal"
