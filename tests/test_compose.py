"""The compose file and its overlay of two servers, started as a user does: needs the images and a compose command.

`SLOW=1 IPET_COMPOSE="docker compose" python -m pytest tests/test_compose.py -s`; POSTGRES_IMAGE, HAPROXY_IMAGE and
PROMETHEUS_IMAGE name other images. What is killed is killed from outside, by its process id.
"""

import json
import os
import secrets
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[1]
COMPOSE = shlex.split(os.environ.get("IPET_COMPOSE", ""))
FILES = ("-p", "ipet-test", "-f", "docker-compose.yml", "-f", "docker/compose.fleet.yml")
PROXY, FIRST, PROMETHEUS = "http://127.0.0.1:8080", "http://127.0.0.1:8000", "http://127.0.0.1:9090"
BUNDLE, CLIP = ROOT / "adapters/bundles/sound-events", ROOT / "adapters/examples/rain.mp3"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not COMPOSE, reason="IPET_COMPOSE names no compose command"),
]


def within(seconds: float, look: Callable[[], Any]) -> Any:
    """What `look` finds as soon as it is true."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = look()
        except (httpx.HTTPError, KeyError, IndexError, ValueError) as error:
            found, last = None, error
        else:
            last = found
        if found:
            return found
        assert time.monotonic() < deadline, last
        time.sleep(0.5)


@pytest.fixture(scope="module")
def fleet() -> Iterator[httpx.Client]:
    """A client with the key, of no address."""
    key = secrets.token_hex(24)
    env = os.environ | {"IPET_ADMIN_KEYS": key, "POSTGRES_PASSWORD": secrets.token_hex(24)}

    def compose(*words: str) -> None:
        subprocess.run([*COMPOSE, *FILES, *words], cwd=ROOT, env=env, check=True)

    try:
        compose("up", "-d", "--no-build")
        with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=30) as http:
            yield http
    finally:
        compose("down", "-v")


def value(http: httpx.Client, query: str) -> float:
    found = http.get(f"{PROMETHEUS}/api/v1/query", params={"query": query}).json()["data"]["result"]
    return float(found[0]["value"][1])


def process_of(service: str) -> int:
    """The first process of a service's container."""
    engine = "podman" if "podman" in COMPOSE[0] else "docker"
    listed = subprocess.check_output([engine, "ps", "-q", "--filter", f"name=ipet-test_{service}_1"], text=True)
    return int(json.loads(subprocess.check_output([engine, "inspect", listed.split()[0]]))[0]["State"]["Pid"])


def test_two_servers_behind_a_proxy(fleet: httpx.Client) -> None:
    def classify(at: str, adapter: str) -> int:
        return fleet.post(f"{at}/v1/classify", params={"adapter": adapter}, content=CLIP.read_bytes()).status_code

    started = time.monotonic()
    within(180, lambda: fleet.get(f"{PROXY}/readyz").status_code == 200)
    print(f"ready behind the proxy: {time.monotonic() - started:.0f} s")
    for at in (PROXY, FIRST):
        assert within(60, lambda at=at: classify(at, "sound-events") == 200)
    assert within(60, lambda: value(fleet, 'sum(up{job="ipet"})') == 2)
    assert within(30, lambda: value(fleet, 'sum(ipet_requests_total{route="/v1/classify",code="200"})') >= 2)

    parts = {
        "config": (BUNDLE / "adapter_config.json").read_bytes().replace(b'"sound-events"', b'"mine"', 1),
        "weights": (BUNDLE / "adapter_model.safetensors").read_bytes(),
    }
    answer = fleet.post(f"{PROXY}/v1/adapters/mine/versions", files=parts)
    assert answer.status_code == 201, answer.text
    assert within(5, lambda: classify(FIRST, "mine") == 200)

    os.kill(process_of("ipet"), signal.SIGKILL)
    started = time.monotonic()
    assert within(10, lambda: classify(PROXY, "mine") == 200), "the other server has it, too"
    print(f"answered by the other: {time.monotonic() - started:.1f} s")
    assert within(120, lambda: classify(FIRST, "mine") == 200), "it returns with the adapter"
    print(f"back: {time.monotonic() - started:.1f} s")
    assert within(30, lambda: value(fleet, 'sum(up{job="ipet"})') == 2)
