"""Three servers on one PostgreSQL and store behind docker/haproxy.cfg: adapters stay where they are, servers may go."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.api.live import Live, running, settings_for
from tests.api.test_metrics import samples
from tests.ports import free_port
from tests.postgres import Postgres
from tests.waiting import soon

CONFIGURATION = Path(__file__).parents[2] / "docker" / "haproxy.cfg"
ADAPTERS = [f"tenant-{number}" for number in range(12)]

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed")


@contextmanager
def proxied(servers: list[Live]) -> Iterator[httpx.Client]:
    """A client of the proxy before three servers, all seen ready."""
    bind = f"127.0.0.1:{free_port()}"
    places = {f"IPET_SERVER_{number}": one.url.removeprefix("http://") for number, one in enumerate(servers, 1)}
    process = subprocess.Popen(
        ["haproxy", "-db", "-f", CONFIGURATION], env={**os.environ, **places, "IPET_BIND": bind}, text=True
    )
    try:
        with httpx.Client(base_url=f"http://{bind}", timeout=30, transport=httpx.HTTPTransport(retries=5)) as http:
            yield http
    finally:
        process.terminate()
        process.wait(10)


def holders(servers: list[Live], name: str) -> set[int]:
    """The servers that have an adapter loaded."""
    states = [one.http.get(f"/v1/adapters/{name}").json()["versions"][0]["state"] for one in servers]
    return {number for number, state in enumerate(states) if state == "resident"}


def test_an_adapter_stays_with_its_server_and_a_server_may_go(
    postgres: Postgres, bucket: str, tiny_ast_dir: Path, tmp_path: Path, clip: bytes
) -> None:
    shared = {"database_url": postgres.new_database(), "objects": bucket, "adapter_slots": 16}
    with ExitStack() as first, ExitStack() as second, ExitStack() as stack:
        gone, *others = (
            one.enter_context(running(settings_for(tiny_ast_dir, tmp_path / str(number), **shared)))
            for number, one in enumerate((first, second, stack))
        )
        servers = [gone, *others]
        http = stack.enter_context(proxied(servers))

        def classify(name: str) -> int:
            """The status; 0 of a connection that was closed instead."""
            try:
                return http.post("/v1/classify", params={"adapter": name}, content=clip).status_code
            except httpx.RemoteProtocolError:
                return 0

        for name in ADAPTERS:
            gone.publish(tmp_path, name)
        asked = [(one, f"/v1/adapters/{name}") for one in others for name in ADAPTERS]
        soon(lambda: {one.http.get(path).status_code for one, path in asked} == {200}, 20)  # all servers have seen them
        for one in servers:
            for name in ADAPTERS:
                one.http.post(f"/v1/adapters/{name}/unload")
        for _ in range(4):
            assert {classify(name) for name in ADAPTERS} == {200}
        homes = {name: holders(servers, name) for name in ADAPTERS}
        for name in ADAPTERS:  # what is done to an adapter reaches the server that answers for it
            assert http.post(f"/v1/adapters/{name}/unload").status_code == 200
            assert not holders(servers, name), name
            assert http.post(f"/v2/repository/models/{name}/load").status_code == 200
            assert classify(f"{name}@1") == 200
            assert holders(servers, name) == homes[name], name
        assert all(len(found) == 1 for found in homes.values()), homes
        assert len(set.union(*homes.values())) == 3
        assert (
            http.post("/v2/models/tenant-0/infer", json={}).status_code == 422
        )  # named in the path, told by its server

        def heard_by_first() -> float:
            series = samples(gone, "ipet_requests_total")
            return sum(count for labels, count in series.items() if ("route", "/v1/classify") in labels)

        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(classify, ADAPTERS * 10)
            gone.context.draining = True  # as SIGTERM begins: no longer ready, still answering
            assert set(answers) == {200}

            def is_passed_by() -> bool:
                """Whether a whole round passes it by."""
                heard = heard_by_first()
                assert {classify(name) for name in ADAPTERS} == {200}
                return heard == heard_by_first()

            soon(is_passed_by, 20)
            answers = pool.map(classify, ADAPTERS * 10)
            first.close()
            assert set(answers) == {200}, "a server that drained before it stopped costs no request"
        assert all(holders(others, name) for name in ADAPTERS)

        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(classify, ADAPTERS * 10)
            second.close()  # without a word
            # 502 or closed: what it had in hand, by the proxy; closed where its own connection there was not a new one
            assert set(answers) <= {0, 200, 502, 503}
        soon(lambda: {classify(name) for name in ADAPTERS} == {200}, 20)
