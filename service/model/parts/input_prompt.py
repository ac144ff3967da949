"""A learnt frame around a window's spectrogram, the visual prompting of arXiv 2203.17274.

The frame is added to the normalised spectrogram as AST sees it: a picture `[128 mel bins, frames]`, lowest bin first.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, ValidationInfo, model_validator
from torch import Tensor

from service.model.groups import Group
from service.model.parts.part import Holding, Part, Shapes, Source, model_type_of, problem
from service.model.spec import MEL_BINS, BackboneSpec, ModelType

PLACE = "input"
_SIDES = ("up", "down", "left", "right")
_WIDEST = (MEL_BINS - 1) // 2  # its sides do not overlap


class InputPrompt(Part):
    """`input_prompt` p: `input.prompt.up`, `.down` `[p, frames]`, `.left`, `.right` `[128 - 2 p, p]`; AST only.

    Args:
        frames: of the window that it lies around, `input.window_frames`.
    """

    family: ClassVar = "input-prompt"
    since: ClassVar = {"input_prompt": 2}
    counted_as: ClassVar = "prompt"

    input_prompt: int = Field(default=0, ge=0, le=_WIDEST)
    frames: int = Field(default=0, exclude=True)
    model_type: str = Field(default=ModelType.AST.value, exclude=True)

    @classmethod
    def gather(cls, fields: Mapping[str, Any], version: int) -> dict[str, Any]:
        found = {"input_prompt": fields["input_prompt"]} if "input_prompt" in fields else {}
        window = fields.get("input")
        if "backbone" in fields:
            found["model_type"] = model_type_of(fields)
        if isinstance(window, Mapping) and isinstance(window.get("window_frames"), int):
            found["frames"] = window["window_frames"]
        return found

    @model_validator(mode="after")
    def _check_window(self, info: ValidationInfo) -> Self:
        if not self.input_prompt:
            return self
        if self.model_type != ModelType.AST:
            raise problem(
                f"input_prompt: expected 0, as {self.model_type} reads no spectrogram, got {self.input_prompt}"
            )
        if 2 * self.input_prompt >= self.frames:
            raise problem(
                f"input_prompt: expected less than half of input.window_frames {self.frames}, got {self.input_prompt}"
            )
        return self

    @property
    def is_held(self) -> bool:
        return self.input_prompt > 0

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        across = (self.input_prompt, self.frames)
        along = (MEL_BINS - 2 * self.input_prompt, self.input_prompt)
        return {_name(side): across if side in ("up", "down") else along for side in _SIDES}

    def hold(self, source: Source) -> Iterable[Holding]:
        sides = [source.tensors[_name(side)] for side in _SIDES]
        yield Holding(PLACE, self.frames, {"picture": picture(*sides)[None]}, exact=True)


def _name(side: str) -> str:
    return f"input.prompt.{side}"


def picture(up: Tensor, down: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """What is added to a window's input: `[frames, bins]`, zero inside the frame.

    Args:
        up: `[p, frames]`, the lowest bins; `down` `[p, frames]`, the highest.
        left: `[bins - 2 p, p]`, the first frames; `right` `[bins - 2 p, p]`, the last.
    """
    frames, width = up.shape[1], left.shape[1]
    inside = left.new_zeros(len(left), frames - 2 * width)
    return torch.cat((up, torch.cat((left, inside, right), dim=1), down), dim=0).transpose(0, 1)


def share_windows(rows: Sequence[int], framed: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Which windows a batch's front end sees, where some rows have an input prompt.

    Args:
        rows: the window of each row.
        framed: whether it has an input prompt.

    Returns:
        The windows seen: those that rows without an input prompt share, then one for each row with one; and which of
        these each row has.
    """
    own = [window for window, mine in zip(rows, framed, strict=True) if mine]
    shared = list(dict.fromkeys(window for window, mine in zip(rows, framed, strict=True) if not mine))
    at, behind = {window: i for i, window in enumerate(shared)}, itertools.count(len(shared))
    return shared + own, [next(behind) if mine else at[window] for window, mine in zip(rows, framed, strict=True)]


def add_pictures(windows: Tensor, group: Group) -> Tensor:
    """Windows `[V, frames, bins]`, the last of which are those of the group's rows, with their pictures added.

    All windows of a batch have one length, so its pictures are of one kind.
    """
    shared = len(windows) - len(group.rows.numbers)
    return torch.cat((windows[:shared], windows[shared:] + group.take("picture")))
