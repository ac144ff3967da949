"""The simulated fleet: what the policies promise, and that nobody's request is lost."""

import pytest

from tests.benchmarks.placement import POLICIES, RATE, Ring, World, shaken, steady


def test_a_ring_moves_only_what_must_move() -> None:
    world = World(POLICIES["hash"], adapters=500, count=5, seconds=0.0)
    keys = [f"adapter-{i:05}" for i in range(500)]
    before = {key: world.ring.successors(key) for key in keys}
    after = Ring({str(one.number): one for one in world.replicas[1:]})
    for key in keys:
        assert sorted(one.number for one in before[key]) == [0, 1, 2, 3, 4]
        assert after.successors(key) == [one for one in before[key] if one.number]
    assert all(50 < sum(before[key][0].number == number for key in keys) < 170 for number in range(5))


@pytest.mark.parametrize("name", POLICIES)
def test_everything_is_answered_though_a_replica_dies_and_another_joins(name: str) -> None:
    found = shaken(POLICIES[name], adapters=100, count=3, seconds=2.0)
    assert found["p99 after a death"] > found["p99 before"] / 2


def test_who_comes_home_finds_its_adapter_loaded() -> None:
    """With as many adapters as the fleet has slots, each replica keeps its own share; at random all want all."""
    by_hash, by_chance = (steady(POLICIES[name], adapters=200, count=4, seconds=4.0) for name in ("hash", "random"))
    assert by_hash["loads a second and replica"] < by_chance["loads a second and replica"] / 4
    assert steady(POLICIES["bounded hash"], 200, 4, 4.0)["busiest : mean"] < by_hash["busiest : mean"]


def test_one_request_waits_for_its_load_and_its_batch() -> None:
    world = World(POLICIES["random"], adapters=1, count=1, seconds=5.0, rate=RATE / 50).run()
    first, *others = [took for _, took in sorted(world.latencies)]
    assert first == pytest.approx(0.015 + 0.004 + 0.004)
    assert min(others) == pytest.approx(0.008)
