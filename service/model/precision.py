"""Which device and dtype `auto` means on this machine, and memory beside that device. Knows nothing of models."""

from collections.abc import Sequence

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device. Raises ValueError where CUDA is asked for and missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no CUDA device; use cpu or auto")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` or a dtype's name: auto is bfloat16 where the hardware multiplies it faster than float32.

    Raises ValueError where there is none of that name.
    """
    if name != "auto":
        if name not in _DTYPES:
            raise ValueError(f"dtype {name!r} is not known; use auto, {', '.join(_DTYPES)}")
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def use_true_float32(device: torch.device, dtype: torch.dtype) -> None:
    """Has CUDA multiply and convolve in float32 where that was asked for: PyTorch's convolutions default to TF32."""
    if device.type == "cuda" and dtype is torch.float32:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def host_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An empty tensor on the host; page-locked for CUDA, so that nothing waits while it is copied there."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")
