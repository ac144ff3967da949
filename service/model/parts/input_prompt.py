"""A learnt frame around a window's spectrogram, the visual prompting of arXiv 2203.17274.

The frame is added to the normalised spectrogram as AST sees it: a picture `[128 mel bins, frames]`, lowest bin first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from pydantic import Field, ValidationInfo, model_validator
from torch import Tensor

from service.model.groups import Group, Groups
from service.model.parts.part import Holding, Part, Shapes, model_type_of, problem
from service.model.spec import MEL_BINS, BackboneSpec, ModelType

if TYPE_CHECKING:
    from service.model.adapter import AdapterWeights
    from service.model.backbone import Backbone

PLACE = "input"
_SIDES = ("up", "down", "left", "right")
_WIDEST = (MEL_BINS - 1) // 2  # its sides do not overlap


class InputPrompt(Part):
    """`input_prompt` p: `input.prompt.up`, `.down` `[p, frames]`, `.left`, `.right` `[128 - 2 p, p]`; AST only.

    Args:
        frames: of the window that it lies around, `input.window_frames`.
    """

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

    def hold(self, weights: "AdapterWeights", backbone: "Backbone") -> Iterable[Holding]:
        sides = [weights.tensors[_name(side)] for side in _SIDES]
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


@dataclass(frozen=True, slots=True)
class Windows:
    """Which windows a batch's front end sees: each row with an input prompt has one of its own, the others share.

    Args:
        chosen: index into the windows given, for each of the V seen.
        prompted: which of those V have a picture added.
        pictures: the row of the batch whose picture that is.
        rows: index into the V of each row of the batch.
    """

    chosen: list[int]
    prompted: list[int]
    pictures: list[int]
    rows: list[int]


def share_windows(rows: Sequence[int], slots: Sequence[int], prompted: Sequence[bool]) -> Windows:
    """Rows of one window and one input prompt, that of the row's slot or none, share what the front end sees."""
    sources = [(row, slot if has else None) for row, slot, has in zip(rows, slots, prompted, strict=True)]
    number = {source: i for i, source in enumerate(dict.fromkeys(sources))}
    first = {source: b for b, source in reversed(list(enumerate(sources)))}
    with_picture = [source for source in number if source[1] is not None]
    return Windows(
        chosen=[row for row, _ in number],
        prompted=[number[source] for source in with_picture],
        pictures=[first[source] for source in with_picture],
        rows=[number[source] for source in sources],
    )


def add_pictures(windows: Tensor, prompted: Tensor, pictures: Tensor, groups: Groups) -> Tensor:
    """Windows `[V, frames, bins]` with the pictures of the rows `pictures` `[W]` added to the windows `prompted` `[W]`.

    All windows of a batch have one length, so its pictures are of one kind.
    """
    (group,) = groups.groups
    place_of_row = _scatter(group, pictures)
    return windows.index_add(0, prompted, group.stacks["picture"][0].index_select(0, place_of_row))


def _scatter(group: Group, rows: Tensor) -> Tensor:
    """Where in the stacks the pictures of the batch's rows `rows` are."""
    if group.rows.index is None:
        return group.index.index_select(0, rows)
    return group.index.index_select(0, torch.searchsorted(group.rows.index, rows))
