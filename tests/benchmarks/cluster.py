"""What Ray costs a request, beside one process: `python -m tests.benchmarks.cluster` where Ray is installed.

The same clip of 1.28 s of one adapter of the embedded backbone, asked by clients that keep their connections, of
`ipet serve` and of `ipet cluster run` with one and two devices. Processor time is that of all processes of the service.
"""

import argparse
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from tests.benchmarks.tenants import show, write_json
from tests.cluster.processes import Cluster, cluster, free_port
from tests.synthesis import encode, noise

PATH = "/v1/classify?adapter=digits"
HEADERS = {"Authorization": "Bearer root"}
BUNDLES = str(Path("adapters/bundles").resolve())
PLANS = {
    "front + device": 'devices = ["cpu"]\nthreads = 1',
    "front + two devices": 'devices = ["cpu", "cpu"]\nthreads = 1',
}


@contextmanager
def alone(directory: Path) -> Iterator[Cluster]:
    """One process, on one core for its device as well."""
    port = free_port()
    flags = {"port": port, "data-dir": directory, "adapters": BUNDLES, "device": "cpu", "log-level": "warning"}
    command = [sys.executable, "-m", "service", "serve", *(f"--{name}={value}" for name, value in flags.items())]
    environment = {**os.environ, "IPET_ADMIN_KEYS": "root", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = Cluster(process, f"http://127.0.0.1:{port}")
    try:
        while not _is_ready(found):
            time.sleep(0.2)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _is_ready(served: Cluster) -> bool:
    try:
        with served.client() as client:
            return client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def ask(served: Cluster, clip: bytes, seconds: float, latencies: list[float]) -> None:
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"))
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        started = time.perf_counter()
        connection.request("POST", PATH, clip, HEADERS)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        latencies.append(time.perf_counter() - started)
    connection.close()


def measure(served: Cluster, clip: bytes, clients: int, seconds: float) -> dict[str, float]:
    ask(served, clip, 1.0, [])
    latencies: list[list[float]] = [[] for _ in range(clients)]
    before, began = served.processor_seconds(), time.monotonic()
    threads = [threading.Thread(target=ask, args=(served, clip, seconds, mine)) for mine in latencies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    after, every = served.processor_seconds(), np.concatenate(latencies) * 1e3
    used = {name: 1e3 * (spent - before.get(name, 0.0)) / len(every) for name, spent in after.items()}
    told = {"requests a second": len(every) / took, "p50, ms": float(np.median(every))}
    told |= {"p99, ms": float(np.quantile(every, 0.99)), "processor ms a request": sum(used.values())}
    ours = {"front": used.get("front", 0.0), "device": used.get("device", 0.0)}
    return told | ours | {"Ray's own": sum(used.values()) - sum(ours.values()) if ours["device"] else 0.0}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.cluster", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each cell")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    options = parser.parse_args(arguments)
    clip, results = encode(noise(1.28, seed=1)), {}
    with tempfile.TemporaryDirectory() as name:
        for title in ("one process", *PLANS):
            directory = Path(name) / title.replace(" ", "-")
            directory.mkdir()
            serve = {"adapters": BUNDLES, "log_level": "warning"}
            opened = alone(directory) if title not in PLANS else cluster(directory, PLANS[title], serve)
            with opened as served:
                for clients in options.clients:
                    results[f"{title}, {clients} clients"] = measure(served, clip, clients, options.seconds)
    rows = [[title, *(f"{value:.3g}" for value in row.values())] for title, row in results.items()]
    show(f"load average {os.getloadavg()[0]:.1f}", ["", *next(iter(results.values()))], rows)
    write_json("cluster", results)


if __name__ == "__main__":
    main()
