"""The frame around the spectrogram: where each side lies, and that it only costs the rows that have it."""

from pathlib import Path

import pytest
import torch

from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.parts.input_prompt import picture, share_windows
from tests.backbones import adapter_spec, random_adapter
from tests.model.reference import Reference, relative_error


def test_sides_lie_where_they_are_said_to() -> None:
    sides = {"up": 1.0, "down": 2.0, "left": 3.0, "right": 4.0}
    shapes = {"up": (2, 7), "down": (2, 7), "left": (124, 2), "right": (124, 2)}
    frame = picture(**{side: torch.full(shapes[side], value) for side, value in sides.items()})  # [frames, bins]
    assert frame.shape == (7, 128)
    assert set(frame[:, :2].flatten().tolist()) == {1.0}
    assert set(frame[:, -2:].flatten().tolist()) == {2.0}
    assert set(frame[:2, 2:-2].flatten().tolist()) == {3.0}
    assert set(frame[-2:, 2:-2].flatten().tolist()) == {4.0}
    assert not frame[2:-2, 2:-2].any()


@pytest.mark.parametrize(("frames", "width"), [(64, 1), (96, 31), (200, 63)])
def test_equals_the_reference(tiny_ast: Backbone, tiny_ast_dir: Path, frames: int, width: int) -> None:
    weights = random_adapter(adapter_spec(2, 3, input_prompt=width, frames=frames), tiny_ast.spec, 1, std=0.5)
    inputs = torch.randn((2, frames, 128), generator=torch.Generator().manual_seed(0))
    embeddings = tiny_ast.forward(inputs, Bank.of(tiny_ast, [weights]), [1, 1])
    expected = Reference(tiny_ast_dir).embeddings(inputs, weights.to_tensors(), 0.5, False)
    assert relative_error(embeddings, expected) < 1e-5


def test_rows_without_one_go_on_sharing_a_window() -> None:
    seen, rows = share_windows([0, 0, 0, 0, 2, 2], [False, True, False, True, True, False])
    assert seen == [0, 2, 0, 0, 2]  # windows 0 and 2 as they are, and one for each row that has a prompt
    assert rows == [0, 2, 0, 3, 4, 1]
