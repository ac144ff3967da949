"""How often the host waits for the device: what PyTorch's synchronisation debug mode warns of."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def synchronisations(device: str) -> Iterator[list[str]]:
    """The waits of all threads within the block, by what was called; none on a CPU, which has nothing to wait for."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        found.extend(str(one.message) for one in told if "synchronizing CUDA operation" in str(one.message))
