"""A minute of mixed load on the device, every answer against float32 on the CPU."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.soak import run

pytestmark = pytest.mark.gpu


@pytest.mark.timeout(300)
def test_a_minute_of_mixed_load(
    device: str, is_dry: bool, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    minutes = 0.2 if is_dry else 1.0
    assert run(minutes, tmp_path, device) == []
    title = (tmp_path / "soak.md").read_text().splitlines()[0]
    record_property("soak", title.removeprefix("# "))
