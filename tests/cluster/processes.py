"""A cluster as `ipet cluster run` starts it, and the processes that it is made of."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 180.0
STOP_SECONDS = 60.0
FRONT, DEVICE = "ray::ServeReplica:default:Front", "ray::ServeReplica:default:Device"


class Cluster:
    """One that runs; its processes are those that came of the one that was started."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str) -> None:
        self.process = process
        self.url = url

    def client(self, key: str = "root", **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, timeout=60, headers=headers, **options)

    def pids(self, kind: str) -> list[int]:
        """Of the fronts or of the devices that have been made out of Ray's idle processes, ready or not."""
        return [pid for pid in _descendants(self.process.pid) if _title(pid).startswith(kind)]

    def processor_seconds(self) -> dict[str, float]:
        """What each kind of process has used so far."""
        found: dict[str, float] = {}
        for pid in _descendants(self.process.pid):
            title = _title(pid).partition(" ")[0].rpartition("/")[2]
            title = next((name for kind, name in ((FRONT, "front"), (DEVICE, "device")) if kind in title), title)
            found[title] = found.get(title, 0.0) + processor_seconds_of(pid)
        return found


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _title(pid: int) -> str:
    return _read(pid, "cmdline").replace("\0", " ")


def _fields(pid: int) -> list[str]:
    return _read(pid, "stat").rpartition(")")[2].split()


def processor_seconds_of(pid: int) -> float:
    fields = _fields(pid)
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _descendants(root: int) -> list[int]:
    parents = {int(one.name): _fields(int(one.name)) for one in Path("/proc").iterdir() if one.name.isdigit()}
    found, last = {root}, 0
    while len(found) > last:
        last = len(found)
        found |= {pid for pid, fields in parents.items() if fields and int(fields[1]) in found}
    return sorted(found)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def cluster(directory: Path, plan: str, serve: dict[str, Any], **environment: str) -> Iterator[Cluster]:
    """One of these lines of TOML and settings, until the end of the `with`."""
    port = free_port()
    settings = {"data_dir": str(directory / "data"), "port": port, "admin_keys": "root", **serve}
    lines = [f"{name} = {value if isinstance(value, int) else repr(str(value))}" for name, value in settings.items()]
    config = directory / "config.toml"
    config.write_text("\n".join([plan, "[serve]", *lines]))
    log = (directory / "log").open("wb")
    told = {"OMP_NUM_THREADS": "1", "RAY_TMPDIR": "/tmp", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "cluster", "run", str(config)],
        env={**os.environ, **told},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    found = Cluster(process, f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + START_SECONDS
        while b"is ready on" not in (directory / "log").read_bytes():
            is_alive = process.poll() is None and time.monotonic() < deadline
            assert is_alive, (directory / "log").read_text()[-4000:]
            time.sleep(0.2)
        yield found
    finally:
        left = _descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        finally:
            for pid in left:  # whatever it left behind
                if _title(pid).startswith(("ray::", "raylet")) or "ray/core" in _title(pid):
                    os.kill(pid, signal.SIGKILL)
            log.close()
