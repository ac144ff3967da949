"""Loads that hang, and adapters that are deleted while they are loaded."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.engine.slots import State, Tier
from service.errors import AdapterFailed, UnknownVersion
from service.model.backbone import Backbone
from service.registry.store import AdapterVersion
from tests.engine.asking import infer
from tests.engine.faults import HungFile, needs_leases
from tests.engine.test_engine import Bench, clip
from tests.waiting import soon

pytestmark = needs_leases
TIMEOUT = 1.5  # seconds; a load of the tiny adapters takes milliseconds


@pytest.fixture
def bench(tiny_wav2vec2: Backbone, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tiny_wav2vec2, tmp_path, load_timeout=TIMEOUT, adapter_slots=4)
    bench.engine.start()
    yield bench
    bench.engine.stop(1.0)


def hung(bench: Bench) -> float | None:
    return bench.telemetry.registry.get_sample_value("ipet_adapter_loads_hung")


def test_loads_that_hang_fail_and_stop_no_others(bench: Bench) -> None:
    stuck, fine = [bench.adapter(f"stuck-{i}") for i in range(4)], bench.adapter("fine")
    files = [HungFile(bench.registry.weights_path(version)) for version in stuck]

    async def ask() -> list[BaseException | None]:
        waiting = [asyncio.create_task(infer(bench.engine, [clip()], [version])) for version in stuck[:2]]
        waiting += [asyncio.create_task(bench.engine.device.load(version)) for version in stuck[2:]]
        await asyncio.sleep(0.1)
        await asyncio.wait_for(infer(bench.engine, [clip()], [fine]), 10 * TIMEOUT)
        return await asyncio.gather(*waiting, return_exceptions=True)

    errors = asyncio.run(ask())
    assert {type(error) for error in errors} == {AdapterFailed}
    assert "the disk has not given its weights within 1.5 s" in str(errors[0])
    for place in bench.engine.device.residences(stuck):
        assert place.state is State.FAILED
        assert "within 1.5 s" in (place.failure or "")
    assert hung(bench) == 4
    started = time.monotonic()
    time.sleep(1.1)  # past the moment for which a failed load is not tried again
    for version in stuck:  # while a load hangs there is no second one, and nobody waits for it
        with pytest.raises(AdapterFailed):
            asyncio.run(infer(bench.engine, [clip()], [version]))
        with pytest.raises(AdapterFailed):
            asyncio.run(bench.engine.device.load(version))
    assert time.monotonic() - started < 1.1 + 4 * TIMEOUT  # eight of them, if each waited
    assert hung(bench) == 4
    for file in files:
        file.close()
    soon(lambda: hung(bench) == 0, 20)
    for version in stuck:
        asyncio.run(infer(bench.engine, [clip()], [version]))


def test_a_pin_that_races_a_deletion_keeps_no_slot(bench: Bench) -> None:
    for round_number in range(6):
        version = bench.adapter(f"doomed-{round_number}")
        if round_number % 2:  # the deletion comes before the pin, after its route has found the version
            bench.registry.delete_adapter(version.name)
            with pytest.raises(UnknownVersion):
                asyncio.run(bench.engine.device.pin(version))
        else:  # it comes amid the load
            file = HungFile(bench.registry.weights_path(version))

            async def pin(version: AdapterVersion = version, file: HungFile = file) -> None:
                pinning = asyncio.create_task(bench.engine.device.pin(version))
                await asyncio.sleep(0.05)
                bench.registry.delete_adapter(version.name)
                await asyncio.to_thread(file.close)
                await pinning

            with pytest.raises(UnknownVersion):
                asyncio.run(pin())
        [place] = bench.engine.device.residences([version])
        assert not place.is_pinned
        assert (place.state, place.tier) == (State.REGISTERED, Tier.DISK)  # not in host memory either
    others = [bench.adapter(f"other-{i}") for i in range(4)]
    for version in others:
        asyncio.run(bench.engine.device.pin(version))
    assert [place.state for place in bench.engine.device.residences(others)] == [State.RESIDENT] * 4


def test_a_pin_that_fails_is_none(bench: Bench) -> None:
    version = bench.adapter("slow")
    file = HungFile(bench.registry.weights_path(version))
    with pytest.raises(AdapterFailed):
        asyncio.run(bench.engine.device.pin(version))
    file.close()
    soon(lambda: hung(bench) == 0, 20)
    assert not bench.engine.device.residences([version])[0].is_pinned
