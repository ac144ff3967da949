"""What HTTP takes of a CPU: the service beside its engine called directly from the same encoded bytes, in turns.

python -m tests.benchmarks.over_http
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from service.audio.decode import decode
from service.engine.cores import use_cores
from service.engine.engine import Engine
from service.model.loading import load_backbone
from service.model.spec import ModelType
from service.registry.store import AdapterVersion, Registry
from service.settings import EMBEDDED, Settings
from service.telemetry import Telemetry
from tests.benchmarks.geometry import checkpoint
from tests.benchmarks.served import Connection, Served, post, serving
from tests.benchmarks.tenants import show, write_json
from tests.bundles import random_bundle
from tests.engine.asking import infer, open_engine
from tests.synthesis import encode, noise

CLIENTS = 8
ADAPTERS = 8  # one for each client
SECONDS = 1.28  # of a clip, which is one window
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Share:
    """HTTP beside the engine alone, medians over rounds.

    Args:
        engine, http: clips a second.
        ratio: of the two, round by round.
        engine_cpu, http_cpu: milliseconds of CPU time a clip.
    """

    backbone: str
    engine: float
    http: float
    ratio: float
    engine_cpu: float
    http_cpu: float


def main(seconds: float = 4.0) -> None:
    with checkpoint(ModelType.AST) as base:
        shares = [measure("embedded", EMBEDDED, seconds), measure("AST-base", str(base), seconds)]
    columns = ("backbone", "engine, clips/s", "HTTP, clips/s", "ratio", "engine, CPU ms a clip", "HTTP, CPU ms a clip")
    rows = [tuple(v if isinstance(v, str) else f"{v:.3g}" for v in asdict(share).values()) for share in shares]
    show(f"{CLIENTS} clients, each with an adapter of its own, wav of {SECONDS} s, {ROUNDS} rounds", columns, rows)
    write_json("over_http", [asdict(share) for share in shares])


def measure(name: str, checkpoint: str, seconds: float) -> Share:
    clip = encode(noise(SECONDS, seed=1))
    backbone = load_backbone(checkpoint, for_inference=True)
    section = {"sampling_rate": 16000, "window_frames": 128, "windows": 1, "mean": -6.0, "std": 5.0}
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        registry = Registry(place / "engine", backbone.spec)
        stack.callback(registry.close)
        for i in range(ADAPTERS):
            random_bundle(place / "bundles", backbone.spec, f"adapter-{i}", prompt_length=4, input=section)
        registry.register_directory(place / "bundles")
        served = stack.enter_context(
            serving(place / "served", backbone=checkpoint, adapters=place / "bundles", adapter_slots=ADAPTERS)
        )
        engine = open_engine(backbone, registry, Settings(adapter_slots=ADAPTERS), Telemetry())
        engine.start()
        stack.callback(engine.stop, 5.0)
        versions = [registry.resolve(f"adapter-{i}") for i in range(ADAPTERS)]
        return asyncio.run(_in_turns(name, engine, versions, served, clip, seconds))


async def _in_turns(
    name: str, engine: Engine, versions: list[AdapterVersion], served: Served, clip: bytes, seconds: float
) -> Share:
    decoders = ThreadPoolExecutor(2, initializer=use_cores, initargs=(1,))
    connections = [Connection(served.url) for _ in range(CLIENTS)]

    async def ask_engine(client: int) -> None:
        waveform = await asyncio.get_running_loop().run_in_executor(decoders, decode, clip)
        await infer(engine, [waveform], [versions[client]])

    async def ask_http(client: int) -> None:
        status = await connections[client].ask(post(f"/v1/classify?adapter=adapter-{client}", clip))
        if status != 200:
            raise RuntimeError(f"the service answered {status}")

    taken: dict[str, list[tuple[float, float]]] = {"engine": [], "http": []}
    await _rate(ask_engine, time.process_time, 1.0)
    await _rate(ask_http, lambda: served.cpu_seconds()[1], 1.0)
    for i in range(ROUNDS):
        for way in ("engine", "http") if i % 2 else ("http", "engine"):
            if way == "engine":
                taken[way].append(await _rate(ask_engine, time.process_time, seconds))
            else:
                taken[way].append(await _rate(ask_http, lambda: served.cpu_seconds()[1], seconds))
    for connection in connections:
        connection.close()
    pairs = zip(taken["http"], taken["engine"], strict=True)
    ratio = median(http[0] / direct[0] for http, direct in pairs)
    (engine_rate, engine_cpu), (http_rate, http_cpu) = (
        (median(rate for rate, _ in taken[way]), median(cpu for _, cpu in taken[way])) for way in taken
    )
    return Share(name, engine_rate, http_rate, ratio, engine_cpu, http_cpu)


async def _rate(ask: Callable[[int], Awaitable[None]], cpu: Callable[[], float], seconds: float) -> tuple[float, float]:
    """Clips a second with every client asking again as soon as it is answered, and milliseconds of CPU time a clip."""
    answered = 0
    started, before = time.perf_counter(), cpu()

    async def client(index: int) -> None:
        nonlocal answered
        while time.perf_counter() - started < seconds:
            await ask(index)
            answered += 1

    await asyncio.gather(*(client(index) for index in range(CLIENTS)))
    return answered / (time.perf_counter() - started), 1000 * (cpu() - before) / answered


if __name__ == "__main__":
    main()
