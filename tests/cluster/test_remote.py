"""The device of a front, before real devices that are asked as those of other processes are; beside one of its own."""

import asyncio
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.opening import open_before, open_registry, open_runtime
from service.cluster.remote import Fleet, Lost, RemoteDevice, Route, Status
from service.engine.device import Part, Work
from service.engine.slots import State, Tier
from service.errors import AdapterFailed, InvalidBundle, NotReady
from service.registry.store import AdapterVersion, Registry
from service.settings import Settings
from service.telemetry import Telemetry
from tests.api.live import Live, running, settings_for
from tests.bundles import random_bundle
from tests.cluster.fakes import FakeChannel, devices


@dataclass
class Bench:
    """A front's view of two devices, and the registry that all share."""

    device: RemoteDevice
    channel: FakeChannel
    registry: Registry
    settings: Settings

    def part(self, name: str, seed: int = 0) -> Part:
        version = self.registry.resolve(name)
        frames = version.manifest.input.window_frames or 128
        shape = (2, frames, 128)
        windows = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        return Part(version, windows, frames)

    def infer(self, *parts: Part, deadline: float = math.inf) -> list[Any]:
        return asyncio.run(self.device.infer(Work(parts, deadline)))

    @property
    def first(self) -> str:
        """Who runs `alpha`."""
        return self.channel.order(Route("alpha"))[0]


@pytest.fixture(scope="module")
def settings(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_for(tiny_ast_dir, tmp_path_factory.mktemp("cluster") / "data")


@pytest.fixture(scope="module")
def fleet(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with devices(settings, "one", "two") as (device, channel):
        registry = open_registry(settings, device.costs._backbone.spec)
        directory = tmp_path_factory.mktemp("bundles")
        for seed, name in enumerate(("alpha", "beta")):
            files = random_bundle(directory, registry._fit.backbone, name, seed)
            registry.publish(name, files.config, files.weights)
        for replica in channel.replicas.values():
            replica._registry.catch_up()
        yield Bench(device, channel, registry, settings)
        registry.close()


@pytest.fixture
def bench(fleet: Bench) -> Iterator[Bench]:
    replicas = dict(fleet.channel.replicas)
    yield fleet
    for replica in replicas.values():  # and whatever failed in it
        replica._device.forget([fleet.registry.resolve("beta")])
    fleet.channel.replicas = replicas
    fleet.channel.before = lambda replica, method: None
    fleet.channel.asked.clear()
    fleet.channel.tell()


def test_outputs_are_those_of_a_device_of_this_process(bench: Bench, tmp_path: Path) -> None:
    parts = [bench.part("alpha"), bench.part("beta", seed=1)]
    parts.append(Part(parts[1].adapter, parts[0].windows, parts[0].window_frames))
    local = open_runtime(bench.settings, Telemetry())
    local.engine.start()
    try:
        expected = asyncio.run(local.engine.device.infer(Work(parts, math.inf)))
    finally:
        local.engine.stop(1.0)
        local.close()
    found = bench.infer(*parts)
    assert [one.shape for one in found] == [one.shape for one in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_an_adapter_keeps_to_its_device(bench: Bench) -> None:
    for _ in range(3):
        bench.infer(bench.part("alpha"))
    assert {name for name, _ in bench.channel.asked} == {bench.first}


def test_a_version_that_the_device_has_not_heard_of_is_told(bench: Bench, tmp_path: Path) -> None:
    files = random_bundle(tmp_path, bench.registry._fit.backbone, "news", 7)
    bench.channel.before = lambda replica, method: None
    bench.registry.publish("news", files.config, files.weights)
    for replica in bench.channel.replicas.values():
        replica._registry._following.stop()
        replica._registry._records.pop("news", None)
    (values,) = bench.infer(bench.part("news"))
    assert np.isfinite(values).all()
    assert len(bench.channel.asked) == 2


def test_who_is_lost_is_asked_once_more_elsewhere(bench: Bench) -> None:
    first = bench.first

    def die(replica: str, method: str) -> None:
        if replica == first:
            bench.channel.kill(first)
            raise Lost("it died")

    bench.channel.before = die
    assert np.isfinite(bench.infer(bench.part("alpha"))[0]).all()
    assert [name for name, _ in bench.channel.asked] == [first, ({"one", "two"} - {first}).pop()]


def test_two_that_are_lost_are_not_ready(bench: Bench) -> None:
    def die(replica: str, method: str) -> None:
        raise Lost("it died")

    bench.channel.before = die
    with pytest.raises(NotReady, match="lost, and so was another") as caught:
        bench.infer(bench.part("alpha"))
    assert caught.value.retry_after == 1.0
    assert len(bench.channel.asked) == 2


def test_without_devices_nothing_is_asked(bench: Bench) -> None:
    for name in ("one", "two"):
        bench.channel.kill(name)
    with pytest.raises(NotReady, match="no device is running"):
        bench.device.check()
    with pytest.raises(NotReady, match="no device is running"):
        bench.infer(bench.part("alpha"))
    with pytest.raises(NotReady, match="no device is running"):
        asyncio.run(bench.device.pin(bench.registry.resolve("alpha")))
    assert not bench.channel.asked


def test_a_device_that_is_not_ready_leaves_it_to_another(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench.first
    monkeypatch.setattr(bench.channel.replicas[first]._device._health, "fault", "it hangs")
    assert np.isfinite(bench.infer(bench.part("alpha"))[0]).all()
    assert [name for name, _ in bench.channel.asked] == [first, ({"one", "two"} - {first}).pop()]
    bench.device.check()  # one of two will do
    for replica in bench.channel.replicas.values():
        monkeypatch.setattr(replica._device._health, "fault", "it hangs")
    with pytest.raises(NotReady, match="it hangs"):
        bench.infer(bench.part("alpha"))
    bench.channel.tell()
    with pytest.raises(NotReady, match="it hangs"):
        bench.device.check()


def test_an_adapter_that_fails_says_so_with_its_type(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(version: AdapterVersion) -> Any:
        raise AdapterFailed("its file is damaged", adapter=version.reference)

    for replica in bench.channel.replicas.values():
        replica._device.forget([bench.registry.resolve("beta")])
        monkeypatch.setattr(replica._registry, "load", broken)
    with pytest.raises(AdapterFailed, match="its file is damaged") as caught:
        bench.infer(bench.part("beta"))
    assert caught.value.adapter == "beta@1"
    assert len(bench.channel.asked) == 1, "what fails for its own reasons is not tried elsewhere"


def test_a_deadline_crosses_as_the_time_that_is_left(bench: Bench) -> None:
    with pytest.raises(NotReady, match="nobody waits"):
        bench.infer(bench.part("alpha"), deadline=time.monotonic() - 1)
    assert not bench.channel.asked
    bench.infer(bench.part("alpha"), deadline=time.monotonic() + 30)


def test_cancelling_cancels_there(bench: Bench) -> None:
    began, ended = asyncio.Event(), []

    class Hanging:
        async def infer(self, *args: Any) -> Any:
            began.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

    async def leave() -> None:
        task = asyncio.create_task(bench.device.infer(Work([bench.part("alpha")], math.inf)))
        await began.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    bench.channel.replicas = dict.fromkeys(bench.channel.replicas, Hanging())
    asyncio.run(leave())
    assert ended == ["cancelled"]


def test_residences_follow_what_was_done_and_told(bench: Bench) -> None:
    version = bench.registry.resolve("alpha")
    asyncio.run(bench.device.load(version))
    assert [name for name, _ in bench.channel.asked] == [bench.first]
    (place,) = bench.device.residences([version])
    assert (place.state, place.tier, place.is_pinned) == (State.RESIDENT, Tier.DEVICE, False)
    asyncio.run(bench.device.pin(version))
    assert bench.device.residences([version])[0].is_pinned
    for replica in bench.channel.replicas.values():
        assert replica._device.residences([version])[0].is_pinned, "it is pinned wherever its requests may run"
    assert bench.device.occupancy().slots == 2 * bench.settings.adapter_slots
    assert ("alpha", 1, True) in bench.device.occupancy().resident
    asyncio.run(bench.device.unload(version))
    (place,) = bench.device.residences([version])
    assert (place.state, place.tier, place.is_pinned) == (State.REGISTERED, Tier.HOST, False)
    assert bench.device.rate > 0


def test_an_upload_is_tried_out_there(bench: Bench) -> None:
    version = bench.registry.resolve("alpha")
    weights = bench.registry.load(version)
    asyncio.run(bench.device.try_out(version.manifest, weights))
    weights.tensors["head.linear.bias"].fill_(math.nan)
    with pytest.raises(InvalidBundle, match="not finite"):
        asyncio.run(bench.device.try_out(version.manifest, weights))


def test_what_is_older_than_what_is_known_is_not_believed() -> None:
    fleet = Fleet()
    new = Status(2.0, 1, None, 5.0, 4, 1, 0, [("a", 1, "resident", "device", False, None)])
    old = Status(1.0, 1, None, 5.0, 4, 0, 0, [])
    fleet.take({"one": new.plain()})
    fleet.take({"one": old.plain()})
    assert fleet.residences["a", 1].state is State.RESIDENT
    fleet.take({"one": {}, "two": {}})
    assert fleet.known == [new]
    fleet.lose("one")
    assert not fleet.residences


def test_the_nearest_residence_counts() -> None:
    fleet = Fleet()
    failed = ("failed", "disk", True, "why")
    one = Status(1.0, 1, None, 0.0, 4, 1, 0, [("a", 1, *failed), ("b", 1, *failed)])
    two = Status(1.0, 2, None, 0.0, 4, 1, 0, [("a", 1, "registered", "host", False, None)])
    fleet.take({"one": one.plain(), "two": two.plain()})
    place = fleet.residences["a", 1]
    assert (place.state, place.tier, place.is_pinned, place.failure) == (State.FAILED, Tier.HOST, True, "why")
    assert fleet.residences["b", 1].failure == "why"


def test_the_whole_application_runs_before_devices_elsewhere(bench: Bench, clip: bytes, tmp_path: Path) -> None:
    def open_front(settings: Settings, telemetry: Telemetry) -> Any:
        return open_before(bench.device, bench.device.costs._backbone, settings, telemetry)

    settings = bench.settings
    with running(settings) as alone:
        expected = alone.http.post("/v1/classify?adapter=alpha&adapter=beta", content=clip).json()
    bench.device._is_stopping = False
    try:
        with running(settings, open_front) as live:
            ask_everything(live, expected, clip, tmp_path)
    finally:
        bench.device._is_stopping = False


def ask_everything(live: Live, expected: Any, clip: bytes, tmp_path: Path) -> None:
    found = live.http.post("/v1/classify?adapter=alpha&adapter=beta", content=clip).json()
    assert found.get("audio") == expected["audio"], found
    for one, other in zip(found["results"], expected["results"], strict=True):
        assert [label["label"] for label in one["labels"]] == [label["label"] for label in other["labels"]]
        scores = [[label["score"] for label in result["labels"]] for result in (one, other)]
        np.testing.assert_allclose(*scores, atol=1e-5)
    assert live.publish(tmp_path, "later", seed=3) == 1
    assert live.http.post("/v1/classify?adapter=later", content=clip).status_code == 200
    assert live.http.post("/v1/adapters/later/pin").json()["pinned"] is True
    assert live.http.post("/v1/adapters/later/unpin").json()["pinned"] is False
    live.http.delete("/v1/adapters/later").raise_for_status()
    assert live.http.post("/v1/classify?adapter=later", content=clip).status_code == 404
    assert "ipet_slots 8.0" in live.http.get("/metrics").text
