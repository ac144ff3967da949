"""Turns at the threads that decode: fair between flows, bounded, and nothing lost to those who leave."""

import asyncio
import random

from service.engine.prepare import Turns


def test_flows_take_turns() -> None:
    served: list[str] = []

    async def ask(turns: Turns, flow: str) -> None:
        await turns.take(flow)
        served.append(flow)
        await asyncio.sleep(0)
        turns.pass_on()

    async def walk() -> None:
        turns = Turns(1)
        async with asyncio.TaskGroup() as group:
            for flow in ("busy", *["busy"] * 50, "quiet", "other", "quiet"):
                group.create_task(ask(turns, flow))

    asyncio.run(walk())
    assert served[:6] == ["busy", "busy", "quiet", "other", "busy", "quiet"]
    assert served[6:] == ["busy"] * 48


def test_no_more_than_its_width_and_no_turn_is_lost() -> None:
    """Cancelled at random moments, waiting or inside, everyone else still has a turn and they end up free."""
    inside = most = finished = 0

    async def ask(turns: Turns, flow: str, generator: random.Random) -> None:
        nonlocal inside, most, finished
        await turns.take(flow)
        inside += 1
        most = max(most, inside)
        try:
            for _ in range(generator.randrange(4)):
                await asyncio.sleep(0)
        finally:
            inside -= 1
            turns.pass_on()
        finished += 1

    async def walk() -> int:
        generator, turns = random.Random(0), Turns(3)
        tasks = [asyncio.create_task(ask(turns, f"flow-{i % 7}", generator)) for i in range(400)]
        cancelled = 0
        while not all(task.done() for task in tasks):
            cancelled += generator.choice(tasks).cancel()
            await asyncio.sleep(0)
        gone = sum(task.cancelled() for task in tasks)
        for _ in range(3):  # free again: nobody waits
            await asyncio.wait_for(turns.take("last"), 1)
        return gone

    gone = asyncio.run(walk())
    assert (most, inside) == (3, 0)
    assert gone > 20
    assert finished == 400 - gone
