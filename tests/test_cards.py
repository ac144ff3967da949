"""A card takes the pictures beside it into itself, and nothing else."""

import tracemalloc
from pathlib import Path

from service.cards import MAX_CARD_BYTES, read_card


def test_pictures_beside_a_card_are_in_it(tmp_path: Path) -> None:
    (tmp_path / "loss.png").write_bytes(b"\x89PNG")
    (tmp_path / "roc.jpg").write_bytes(b"\xff\xd8")
    (tmp_path.parent / "outside.png").write_bytes(b"secret")
    rest = "![a](none.png) ![b](../outside.png) [r](roc.jpg) <img src=loss.png>"
    (tmp_path / "README.md").write_text(f"![Loss](loss.png) ![](roc.jpg) {rest}")
    assert read_card(tmp_path / "README.md").decode() == (
        f"![Loss](data:image/png;base64,iVBORw==) ![](data:image/jpeg;base64,/9g=) {rest}"
    )


def test_a_card_keeps_its_size(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(MAX_CARD_BYTES * 4 // 5))
    (tmp_path / "README.md").write_text("![Large](large.png)")
    assert read_card(tmp_path / "README.md") == b"![Large](large.png)"


def test_a_picture_that_is_named_often_is_read_once_or_never(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bytes(MAX_CARD_BYTES))
    (tmp_path / "small.png").write_bytes(b"\x89PNG")
    (tmp_path / "README.md").write_text("![a](a.png)" * 300)
    tracemalloc.start()
    assert read_card(tmp_path / "README.md") == b"![a](a.png)" * 300
    assert tracemalloc.get_traced_memory()[1] < MAX_CARD_BYTES
    tracemalloc.stop()
    (tmp_path / "README.md").write_text("![a](small.png)" * 300)
    assert read_card(tmp_path / "README.md") == b"![a](data:image/png;base64,iVBORw==)" * 300
