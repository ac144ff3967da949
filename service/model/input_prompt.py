"""A learnt frame around a window's spectrogram, the visual prompting of arXiv 2203.17274. Knows no slots.

The frame is added to the normalised spectrogram as AST sees it: a picture `[128 mel bins, frames]`, lowest bin first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

PREFIX = "input.prompt."  # of the tensors' names


@dataclass(frozen=True, slots=True)
class InputPrompt:
    """A frame of width p; its sides do not overlap."""

    up: Tensor  # [p, frames], the lowest bins
    down: Tensor  # [p, frames], the highest bins
    left: Tensor  # [bins - 2 p, p], the first frames
    right: Tensor  # [bins - 2 p, p], the last frames

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "InputPrompt":
        """The frame of a bundle's tensors, in float32."""
        return cls(**{side.name: tensors[PREFIX + side.name].to(torch.float32) for side in fields(cls)})

    def to_tensors(self) -> dict[str, Tensor]:
        return {PREFIX + side.name: getattr(self, side.name) for side in fields(self)}

    def picture(self) -> Tensor:
        """What is added to a window's input: `[frames, bins]`, zero inside the frame."""
        frames, width = self.up.shape[1], self.left.shape[1]
        inside = self.left.new_zeros(len(self.left), frames - 2 * width)
        middle = torch.cat((self.left, inside, self.right), dim=1)
        return torch.cat((self.up, middle, self.down), dim=0).transpose(0, 1)


def add_input_prompts(
    windows: Tensor, rows: Sequence[int], pictures: Sequence[Tensor | None]
) -> tuple[Tensor, list[int]]:
    """Gives every row that has an input prompt a window of its own; the others go on sharing theirs.

    Args:
        windows: `[U, frames, bins]`, on the device of the pictures.
        rows: index into `windows` for each of the B rows.
        pictures: what is added to row b's window, `[frames, bins]`, None for nothing.

    Returns:
        Windows `[V, frames, bins]` and each row's index among them.
    """
    sources = [(row, None if picture is None else id(picture)) for row, picture in zip(rows, pictures, strict=True)]
    distinct = {source: number for number, source in enumerate(dict.fromkeys(sources))}
    chosen = windows.index_select(0, torch.tensor([row for row, _ in distinct], device=windows.device))
    by_identity = {id(picture): picture for picture in pictures if picture is not None}
    prompted = [number for (_, identity), number in distinct.items() if identity is not None]
    added = torch.stack([by_identity[identity] for _, identity in distinct if identity is not None])
    prompted_windows = chosen.index_add(0, torch.tensor(prompted, device=windows.device), added)
    return prompted_windows, [distinct[source] for source in sources]
