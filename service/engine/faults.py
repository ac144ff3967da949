"""What an error that came from the device means. PyTorch has types for some of them, and only texts for others."""

import re
from enum import StrEnum

import torch

_MEMORY = re.compile(r"out of memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)
_DEVICE = re.compile(
    r"(CUDA|HIP|cuDNN|cuBLAS|CUBLAS|NVRTC) (error|failure)|CU(BLAS|DNN|SOLVER|FFT)_STATUS|device-side assert"
)


class Fault(StrEnum):
    """Kinds of errors, as the metric counts them.

    MEMORY: there was no room; less would have fitted.
    DEVICE: of CUDA itself, after which its context is often dead: everything later fails too, until a new process.
    ERROR: anything else, such as shapes that do not match.
    """

    MEMORY = "memory"
    DEVICE = "cuda"
    ERROR = "error"


def fault_of(error: BaseException) -> Fault:
    """Which kind `error` is."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _MEMORY.search(text):
        return Fault.MEMORY
    if isinstance(error, torch.AcceleratorError) or _DEVICE.search(text):
        return Fault.DEVICE
    return Fault.ERROR
