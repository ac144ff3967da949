"""Minutes of mixed load on a real server: every answer against a reference, and nothing that only ever grows.

    python tests/soak.py 5 --out soak-report

Starts `ipet serve` on a tiny backbone with few slots and many adapters, in float32. Clients classify (one and several
adapters, one and several clips), embed and score; they leave in the middle of a request and set deadlines; others
upload, roll `live` back and forth, delete, load and unload. Answers are compared with each adapter run alone before
and without the service. Afterwards nothing may be in flight, the log may hold no error, and SIGTERM must end the server
with 0. Writes `soak.md` (a table), `soak.png` (a plot), `soak.csv` (its points) and `server.log`; exits with 1 when
anything was wrong.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))  # as a script it is not run from the package

import torch

from service.audio.decode import decode
from service.engine.engine import answer
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.loading import load_backbone
from service.model.spec import BackboneSpec, TaskType
from service.registry.bundle import BundleFiles
from service.registry.store import AdapterVersion, Registry
from service.scoring.score import clip_scores, voiceprint
from tests.backbones import save_tiny_ast
from tests.bundles import random_bundle
from tests.cli.process import Served, serving
from tests.load import TOLERANCE, Adapter, Load, Report
from tests.synthesis import encode, noise

CLASSIFIERS: Final = 16
VERIFIERS: Final = 4
SLOTS: Final = 4
CLIENTS: Final = 8
SAMPLE_SECONDS: Final = 2.0  # at most, and so many samples at least
SAMPLES: Final = 20
SETTLED_MINUTES: Final = 0.5  # shorter runs are all warm-up, in which memory may grow
SETTLE_SECONDS: Final = 10.0
WARM_UP_SHARE: Final = 0.25  # of the run, after which nothing may grow any more
GROWTH_MB: Final = 24.0
GROWTH_COUNT: Final = 4  # of file handles and threads


async def watch(pid: int, load: Load, begun: float, ends: float) -> None:
    """Samples what the server's process holds, and shows that time passes."""
    proc, report = Path(f"/proc/{pid}"), load.report
    while load.goes_on(ends):
        now = time.monotonic()
        fields = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        handles = len(list((proc / "fd").iterdir()))
        report.samples.append((now - begun, int(fields["VmRSS"].split()[0]) / 1024, handles, int(fields["Threads"])))
        if sys.stderr.isatty():
            share = (now - begun) / (ends - begun)
            bar = "#" * round(30 * share)
            print(f"\r[{bar:<30}] {sum(report.asked.values())} requests", end="", file=sys.stderr, flush=True)
        await asyncio.sleep(min(SAMPLE_SECONDS, (ends - begun) / SAMPLES))
    if sys.stderr.isatty():
        print(file=sys.stderr)


def growth(report: Report) -> dict[str, float]:
    """How much more the last fifth of the run holds than the time right after the warm-up, by medians."""
    table = np.array(report.samples)
    last = table[-1, 0]
    settled = table[(table[:, 0] >= WARM_UP_SHARE * last) & (table[:, 0] <= (WARM_UP_SHARE + 0.2) * last)]
    end = table[table[:, 0] >= 0.8 * last]
    grown = np.median(end, axis=0) - np.median(settled, axis=0)
    return {"memory, MiB": float(grown[1]), "file handles": float(grown[2]), "threads": float(grown[3])}


def judge(report: Report, minutes: float) -> list[str]:
    """Everything that was wrong."""
    limits = {"memory, MiB": GROWTH_MB, "file handles": GROWTH_COUNT, "threads": GROWTH_COUNT}
    found = growth(report) if minutes >= SETTLED_MINUTES else {}
    grown = [f"{what} grew by {by:.1f}" for what, by in found.items() if by > limits[what]]
    return report.wrong + grown + [f"nobody was answered {kind}" for kind in report.unanswered()]


def write_report(report: Report, faults: list[str], minutes: float, directory: Path, classifiers: int) -> str:
    """`soak.md` and `soak.png` in `directory`; the table."""
    table = np.array(report.samples)
    lines = [
        f"# Soak of {minutes:g} min: {sum(report.asked.values())} requests, {len(faults)} faults",
        "",
        f"{SLOTS} slots, {classifiers + VERIFIERS} adapters, {CLIENTS} clients, {os.cpu_count()} cores, float32; "
        f"{report.loads} loads into slots. The largest difference from the reference is {report.worst:.1e} "
        f"(allowed {TOLERANCE:.0e}).",
        "",
        "| request | asked | answers |",
        "|---|---|---|",
    ]
    for kind, count in sorted(report.asked.items()):
        answers = {status: n for (of, status), n in sorted(report.statuses.items()) if of == kind}
        lines.append(f"| {kind} | {count} | {', '.join(f'{n} x {s}' for s, n in answers.items()) or 'not awaited'} |")
    lines += ["", "| the server holds | at first | at the end | most | growth after warm-up |", "|---|---|---|---|---|"]
    for column, (what, by) in enumerate(growth(report).items(), start=1):
        values = table[:, column]
        lines.append(f"| {what} | {values[0]:.0f} | {values[-1]:.0f} | {values.max():.0f} | {by:+.1f} |")
    lines += ["", *(f"- {fault}" for fault in faults[:50])]
    text = "\n".join(lines).rstrip() + "\n"
    (directory / "soak.md").write_text(text)
    names = "seconds,memory_mib,file_handles,threads"
    np.savetxt(directory / "soak.csv", table, "%.1f", ",", header=names, comments="")
    _plot(table, directory / "soak.png")
    return text


def _plot(table: NDArray[np.float64], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(3, 1, sharex=True, figsize=(8, 7))
    for panel, column, title in zip(panels, (1, 2, 3), ("memory, MiB", "file handles", "threads"), strict=True):
        panel.plot(table[:, 0], table[:, column])
        panel.set_ylabel(title)
        panel.set_ylim(bottom=0)
    panels[-1].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is made before the server starts; `bundles[i]` are the versions of `adapters[i]`."""

    clips: list[bytes]
    adapters: list[Adapter]
    bundles: list[list[BundleFiles]]
    uploads: list[BundleFiles]


def prepare(directory: Path, backbone_dir: Path, classifiers: int) -> Prepared:
    """Bundles of random weights, two versions of every second one, and what each says of each clip by itself."""
    backbone = load_backbone(str(backbone_dir), "cpu", "float32")
    registry = Registry(directory / "reference", backbone.spec)
    clips = [encode(noise(seconds, seed=seed)) for seed, seconds in enumerate((0.3, 0.7, 1.5, 2.2))]
    adapters, bundles = [], []
    for index in range(classifiers + VERIFIERS):
        name, is_classifier = f"adapter-{index}", index < classifiers
        files = _bundles(directory, backbone.spec, index, is_classifier)
        versions = [registry.publish(name, one.config, one.weights).version for one in files]
        expected = {
            version.version: [alone(backbone, registry, version, clip) for clip in clips] for version in versions
        }
        adapters.append(Adapter(name, is_classifier, expected))
        bundles.append(files)
    uploads = [random_bundle(directory, backbone.spec, "fleeting", seed) for seed in range(5)]
    return Prepared(clips, adapters, bundles, uploads)


def alone(backbone: Backbone, registry: Registry, version: AdapterVersion, clip: bytes) -> NDArray[np.float32]:
    """What the adapter says of the clip with nothing else around: probabilities `[C]` or a voiceprint `[E]`."""
    weights, manifest = registry.load(version), version.manifest
    windows = backbone.features.windows(torch.from_numpy(decode(clip).samples), manifest.input_spec())
    with torch.inference_mode():
        bank = Bank.of(backbone, [weights])
        outputs = backbone.answer(windows.inputs, bank, [1] * len(windows.inputs))
    values = answer(manifest, outputs.numpy())
    return np.asarray(clip_scores(values) if manifest.activation else voiceprint(values), np.float32)


def _bundles(directory: Path, spec: BackboneSpec, index: int, is_classifier: bool) -> list[BundleFiles]:
    task = TaskType.CLASSIFICATION if is_classifier else TaskType.VERIFICATION
    shape = {"prompt_length": index % 5, "bottleneck_dim": (index % 3) * 4}
    seeds = (index, 1_000 + index) if index % 2 == 0 else (index,)
    return [random_bundle(directory, spec, f"adapter-{index}", seed, task=task, **shape) for seed in seeds]


async def soak(served: Served, prepared: Prepared, seconds: float) -> Report:
    """Uploads the adapters and loads the server for so long."""
    report = Report()
    limits = httpx.Limits(max_connections=CLIENTS * 4)
    async with httpx.AsyncClient(base_url=served.url, timeout=120, limits=limits) as http:
        for adapter, files in zip(prepared.adapters, prepared.bundles, strict=True):
            for one in files:
                parts = {"config": one.config, "weights": one.weights}
                (await http.post(f"/v1/adapters/{adapter.name}/versions", files=parts)).raise_for_status()
        load, begun = Load(http, prepared.adapters, prepared.clips, report), time.monotonic()
        ends = begun + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(watch(served.process.pid, load, begun, ends))
            group.create_task(load.operator(1, ends, prepared.uploads))
            for seed in range(CLIENTS):
                group.create_task(load.client(seed, ends))
        report.wrong += await settle(http, report)
    return report


async def settle(http: httpx.AsyncClient, report: Report) -> list[str]:
    """What is left once nobody asks any more, although nothing should be."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        numbers = dict(line.rsplit(" ", 1) for line in (await http.get("/metrics")).text.splitlines() if line[0] != "#")
        report.loads = int(float(numbers["ipet_adapter_loads_total"]))
        others = float(numbers["ipet_requests_in_flight"]) - 1  # without this one
        if not others:
            ready = await http.get("/readyz")
            return [] if ready.status_code == 200 else [f"not ready afterwards: {ready.text}"]
        if time.monotonic() > deadline:
            return [f"{others:g} requests are still in flight {SETTLE_SECONDS:g} s after the last one"]
        await asyncio.sleep(0.05)


def end(served: Served, log: Path) -> list[str]:
    """Ends the server; what was wrong with its end or in its log."""
    served.process.terminate()
    status = served.process.wait(60)
    lines = [line for line in log.read_text().splitlines() if '"level": "error"' in line or "Traceback" in line]
    return [f"the server ended with {status}"] * (status != 0) + [f"log: {line[:500]}" for line in lines[:10]]


def run(minutes: float, out: Path, device: str = "cpu", classifiers: int = CLASSIFIERS) -> list[str]:
    """The whole soak; what was wrong."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, (out / "server.log").open("w") as log:
        directory = Path(temporary)
        backbone = save_tiny_ast(directory / "backbone")
        prepared = prepare(directory, backbone, classifiers)
        with serving(backbone, directory / "data", log, adapter_slots=SLOTS, device=device) as served:
            report = asyncio.run(soak(served, prepared, minutes * 60))
            report.wrong += end(served, out / "server.log")
    faults = judge(report, minutes)
    print(write_report(report, faults, minutes, out, classifiers))
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--out", type=Path, default=Path("soak-report"), help="directory of the table and the plot")
    given = parser.parse_args()
    if not 0 < given.minutes <= 24 * 60:
        parser.error("minutes must be above 0 and at most a day")
    sys.exit(1 if run(given.minutes, given.out) else 0)


if __name__ == "__main__":
    main()
