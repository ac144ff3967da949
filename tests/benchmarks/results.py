"""What a run found, as values and JSON. Knows no models and no clocks."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.agreement import Agreement
from tests.benchmarks.timing import Spread


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant in one cell.

    Args:
        milliseconds: a clip.
        speedup: against the authors' form, round by round.
        of_ceiling: the bare backbone's operations by the time, as a share of the dtype's matmul ceiling; work that a
            contestant avoids counts as done. None where the dtype's ceiling was not measured.
    """

    cell: str
    contestant: str
    milliseconds: Spread
    speedup: Spread
    of_ceiling: float | None


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio to reach in one cell, round by round."""

    cell: str
    what: str
    ratio: Spread
    at_least: float

    @property
    def reached(self) -> bool:
        return self.ratio.median >= self.at_least


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that a run found.

    Args:
        noise: by cell, the ratio of a contestant to itself.
        ceiling: by dtype, the best measured rate of a backbone-sized product, GFLOP/s.
        left_out: cells that there was no time for.
    """

    machine: dict[str, str]
    noise: dict[str, Spread] = field(default_factory=dict)
    ceiling: dict[str, float] = field(default_factory=dict)
    agreements: list[Agreement] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def cells(self) -> list[str]:
        return list(dict.fromkeys(row.cell for row in self.rows))


def describe_machine(device: torch.device, cpu_time: bool = False) -> dict[str, str]:
    """What figures must be read with."""
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        threads = torch.get_num_threads()
        kind = torch.backends.cpu.get_cpu_capability()
        processor = f"{names[0] if names else platform.processor()} ({kind}), {threads} thread{'s' * (threads != 1)}"
    return {
        "type": device.type,
        "device": processor,
        "torch": torch.__version__,
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "clock": "CPU time" if cpu_time else "wall time",
        "load": f"{os.getloadavg()[0]:.1f}",  # of other work on the machine when the run began
    }


def write_json(results: Results, path: Path) -> None:
    path.write_text(json.dumps(asdict(results), indent=2) + "\n")


def read_json(path: Path) -> Results:
    """What `write_json` wrote."""
    found = json.loads(path.read_text())

    def with_spreads(entry: dict[str, Any], *names: str) -> dict[str, Any]:
        return entry | {name: Spread(**entry[name]) for name in names}

    return Results(
        machine=found["machine"],
        noise={cell: Spread(**spread) for cell, spread in found["noise"].items()},
        ceiling=found["ceiling"],
        agreements=[Agreement(**entry) for entry in found["agreements"]],
        rows=[Row(**with_spreads(entry, "milliseconds", "speedup")) for entry in found["rows"]],
        goals=[Goal(**with_spreads(entry, "ratio")) for entry in found["goals"]],
        left_out=found.get("left_out", []),
    )


def failures(agreements: Sequence[Agreement]) -> list[str]:
    """What did not agree, in words."""
    return [
        f"{a.cell}: {a.name} differs from {a.against} by {a.error:.2e}; at most {a.tolerance:.0e} is allowed"
        for a in agreements
        if not a.holds
    ]
