"""The day on a card, tried on a CPU: everything runs, nothing is skipped, the JSON and the tables are there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs/PERFORMANCE.md"


@pytest.mark.timeout(600)
def test_the_day_runs_on_a_cpu(tmp_path: Path) -> None:
    before, page = DOCUMENT.read_text(), tmp_path / "page.md"
    page.write_text(before)
    done = subprocess.run(
        [ROOT / "tests/gpu/day.sh", tmp_path],
        env={**os.environ, "DAY_DEVICE": "cpu", "PYTHON": sys.executable, "DOCUMENT": str(page)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    day = json.loads((tmp_path / "day.json").read_text())
    assert {test["outcome"] for test in day["tests"]} == {"passed"}
    rooms = {test["name"].partition(":")[0] for test in day["tests"]}
    assert rooms == {path.stem for path in Path(__file__).parent.glob("test_*.py")} - {"test_day"}
    assert day["bench"]["machine"]["type"] == "cpu"
    assert [row["cell"] for row in day["bench"]["rows"]]
    filled = page.read_text()
    assert "| loads: many loads leave nothing behind | passed |" in filled
    assert "ms a load:" in filled
    assert DOCUMENT.read_text() == before
