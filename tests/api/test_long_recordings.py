"""Six hours of audio through a server of its own: memory stays, whatever the length."""

from pathlib import Path

import pytest

from tests.benchmarks.recordings import BUNDLES, memory_over
from tests.cli.process import serving

MOST_MIB = 64.0


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_six_hours_take_no_more_memory_than_a_minute(tmp_path: Path) -> None:
    with (
        (tmp_path / "log").open("w") as log,
        serving("embedded", tmp_path, log, dtype="auto", adapters=BUNDLES) as served,
    ):
        above, seconds = memory_over(served, hours=6.0, hop=2.0)
    print(f"{above:.1f} MiB above idle, {seconds:.0f} s")
    assert above < MOST_MIB
