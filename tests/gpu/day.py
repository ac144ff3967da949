"""Ten minutes on a card: the GPU tests, then the benchmark; one JSON with all of it, and the tables of the document.

`python -m tests.gpu.day DIRECTORY DOCUMENT` leaves DIRECTORY/day.json; `tests/gpu/day.sh` calls it. With
`DAY_DEVICE=cpu` everything is tried on a CPU, tiny. Ends with 1 where a test or an output was wrong.
"""

import os
import sys
from pathlib import Path

import pytest

# 20 s of timing in each of the four cells: with what is compared and loaded before, two to three minutes on a card.
SIZE = ("--budget", "20")
TRY = ("--tiny", "--model", "wav2vec2")


def main(out: Path, document: Path) -> int:
    device = os.environ.setdefault("DAY_DEVICE", "cuda")
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tests.xml", "bench.json", "day.json"):
        (out / name).unlink(missing_ok=True)
    report = ["-o", "junit_family=xunit1", f"--junitxml={out / 'tests.xml'}"]
    tests = pytest.main(["tests/gpu", "-m", "gpu", *report])

    from tests.benchmarks.__main__ import main as benchmark  # behind pytest, which rewrites what it imports first
    from tests.gpu.summary import summarise

    bench = benchmark(["--device", device, "--out", str(out), *(TRY if device == "cpu" else SIZE)])
    return int(bool(tests) or bool(bench) or not summarise(out, document))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
