"""The soak for a minute."""

from pathlib import Path

import pytest

from tests.soak import run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_minute_of_mixed_load(tmp_path: Path) -> None:
    assert not run(1.0, tmp_path)
    assert (tmp_path / "soak.md").read_text().startswith("# Soak of 1 min")
    assert (tmp_path / "soak.png").stat().st_size > 10_000
