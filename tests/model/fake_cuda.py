"""A backbone on a CUDA device that is not there: tensors without values, whose placement and operations are real."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from service.model.backbone import Backbone
from service.model.checkpoint import load_checkpoint
from service.model.loading import build_backbone, describe

CUDA = torch.device("cuda", 0)
_VIEWS = ("view", "_unsafe_view", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "t")
_NO_KERNELS = (*_VIEWS, "detach", "alias", "split", "split_with_sizes", "as_strided", "narrow", "lift_fresh")


@dataclass
class Counts:
    """What a stretch of code asked of the device; `pageable` are copies to it for which the host has to wait."""

    to_device: int = 0
    pageable: int = 0
    to_host: int = 0
    kernels: int = 0


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self._pinned: list[Tensor] = []  # page-locked memory of the host

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().split("::")[1].split(".")[0]
        made = {each.device.type for each in _tensors(out if isinstance(out, tuple | list) else (out,))}
        if name in ("to", "_to_copy", "copy_", "_local_scalar_dense", "item"):
            read = next(iter(_tensors(args[::-1] if name == "copy_" else args)))
            source, target = read.device.type, next(iter(made), "cpu")
            self.counts.to_device += (source, target) == ("cpu", "cuda")
            self.counts.to_host += (source, target) == ("cuda", "cpu")
            if (source, target) == ("cpu", "cuda"):
                self.counts.pageable += not self._is_pinned(read)
        if (kwargs or {}).get("pin_memory") or (name == "detach" and self._is_pinned(args[0])):
            self._pinned.append(out)
        self.counts.kernels += "cuda" in made and name not in _NO_KERNELS and not any(out is each for each in args)
        return out

    def _is_pinned(self, tensor: Tensor) -> bool:
        return any(tensor is each for each in self._pinned)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@contextmanager
def counting() -> Iterator[Counts]:
    """Counts copies between host and device, and kernels, of what runs in it."""
    with _Counter() as counter:
        yield counter.counts


@contextmanager
def on_fake_cuda(directory: Path, dtype: torch.dtype) -> Iterator[Backbone]:
    """The backbone of a directory on the device that is not there, for as long as the mode lasts."""
    checkpoint = load_checkpoint(str(directory))
    spec = describe(checkpoint, str(directory))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode():
        tensors = {name: mode.from_tensor(tensor) for name, tensor in checkpoint.tensors.items()}
        backbone = build_backbone(replace(checkpoint, tensors=tensors), spec, CUDA, dtype)
        with pytest.MonkeyPatch.context() as patch:  # no values: files are not read again, numpy sees zeros
            patch.setattr(backbone, "_exact", tensors)
            patch.setattr(FakeTensor, "numpy", lambda tensor: np.zeros(tuple(tensor.shape), np.float32), raising=False)
            yield backbone
