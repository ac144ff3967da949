"""`ipet serve` as a process of its own, stopped by its own pid."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("IPET_")}


@dataclass(frozen=True, slots=True)
class Served:
    """A running process and where it listens."""

    process: subprocess.Popen[str]
    url: str

    def end(self, timeout: float = 60.0) -> str:
        """Waits for the end; what it wrote to standard error."""
        return self.process.communicate(timeout=timeout)[1]


@contextmanager
def serving(
    backbone: Path | str, data_dir: Path, log: TextIO | int = subprocess.PIPE, **settings: object
) -> Iterator[Served]:
    """A server on a free port of loopback, ready; `settings` are those of `ipet serve`, `log` gets its errors."""
    given = {"backbone": backbone, "data_dir": data_dir, "port": 0, "device": "cpu", "dtype": "float32"} | settings
    environment = {f"IPET_{name.upper()}": str(value) for name, value in given.items()}
    with subprocess.Popen(
        [sys.executable, "-m", "service", "serve"],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=ENVIRONMENT | environment,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(r"ipet-serve is ready on (http://127\.0\.0\.1:\d+) ", line)
            assert found, line or process.communicate()[1]
            yield Served(process, found[1])
        finally:
            process.kill()
