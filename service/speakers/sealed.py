"""Voiceprints for callers to keep: opaque text that only this service reads, for one domain and one version."""

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.speakers.vault import Vault, Vector

_PURPOSE = "sealed voiceprint"


def seal(vault: Vault, domain: str, digest: str, vector: NDArray[np.float32]) -> str:
    """An embedding `[dim]` by an adapter's version, as text."""
    about = f"{domain}\0{digest}\0".encode()
    return vault.seal_message(_PURPOSE, about + np.ascontiguousarray(vector, "<f4").tobytes())


def unseal(vault: Vault, domain: str, digest: str, text: str) -> Vector:
    """The embedding.

    Raises:
        InvalidRequest: not sealed by this service, or for another domain or version.
    """
    of_domain, of_digest, values = vault.open_message(_PURPOSE, text).split(b"\0", 2)
    if of_domain != domain.encode():
        raise InvalidRequest("a sealed voiceprint is for the domain of the key that it was made with, not for this one")
    if of_digest != digest.encode():
        raise InvalidRequest(
            "a sealed voiceprint is for the version of the adapter that made it: make it anew, or name that version"
        )
    return np.frombuffer(values, "<f4")
