"""A minute of mixed load on the device, every answer against float32 on the CPU."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu.conftest import IS_DRY
from tests.soak import CLASSIFIERS, run

pytestmark = pytest.mark.gpu


@pytest.mark.timeout(300)
def test_a_minute_of_mixed_load(device: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    minutes, classifiers = (0.02, 5) if IS_DRY else (1.0, CLASSIFIERS)
    assert run(minutes, tmp_path, device, classifiers) == []
    title = (tmp_path / "soak.md").read_text().splitlines()[0]
    record_property("soak", title.removeprefix("# "))
