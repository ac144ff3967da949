"""Tenants beside an abusive one, on a fake clock: what they wait, and that they are let in."""

import pytest

from tests.engine.simulation import REQUESTS, Device, simulate

# As measured for AST-base at 1.28 s on two cores, and a device whose fixed cost outweighs its rows.
CPU = Device("base-size backbone on a CPU", fixed=0.010, marginal=0.043)
GPU = Device("a GPU", fixed=0.008, marginal=0.0003)
EMBEDDED = Device("embedded backbone on a CPU", fixed=0.002, marginal=0.002)


@pytest.mark.parametrize("abuse", [1.0, 4.0])
def test_neighbours_hardly_notice_an_abusive_tenant(abuse: float) -> None:
    alone, beside = simulate(CPU, load=0.6), simulate(CPU, load=0.6, abuse=abuse)
    ratio = beside.p99 / alone.p99
    said = (
        f"{CPU.name}: neighbours' p99 {alone.p99 * 1e3:.0f} ms alone, {beside.p99 * 1e3:.0f} ms beside an abuser who "
        f"sends {abuse:g} x the capacity: {ratio:.2f} x, {beside.refused} refused"
    )
    print(said)
    assert len(beside.waits) == REQUESTS, said
    assert ratio <= 1.5, said


def test_what_is_left_goes_to_the_abuser() -> None:
    """The device does not idle to keep neighbours fast, and a full batch is the most that they wait for twice."""
    beside = simulate(GPU, load=0.6, abuse=2.0)
    share = beside.abuser_served / beside.seconds / GPU.capacity
    full_batch = GPU.fixed + GPU.batch_rows * GPU.marginal
    said = f"{GPU.name}: p99 {beside.p99 * 1e3:.0f} ms; the abuser got {share:.2f} of the capacity, the others 0.60"
    print(said)
    assert beside.refused == 0, said
    assert share >= 0.35, said
    assert beside.p99 <= 2.1 * full_batch, said


def test_a_small_queue_is_shared_too() -> None:
    """With room for 40 requests, which the abuser's every burst exceeds, hardly a neighbour is turned away."""
    alone = simulate(CPU, load=0.4, queue_seconds=40 * 1.28)
    beside = simulate(CPU, load=0.4, abuse=4.0, queue_seconds=40 * 1.28)
    said = f"refused: {alone.refused} alone, {beside.refused} beside the abuser, and {beside.abuser_refused} of its own"
    print(said)
    assert beside.refused <= 0.002 * REQUESTS, said
    assert beside.abuser_refused > REQUESTS, said


def test_a_recording_leaves_the_p99_where_it_is() -> None:
    """It takes what requests leave between them, in short batches, and little of that."""
    alone, beside = simulate(EMBEDDED, load=0.5), simulate(EMBEDDED, load=0.5, recorded=True)
    ratio = beside.p99 / alone.p99
    said = f"{EMBEDDED.name}: p99 {alone.p99 * 1e3:.1f} ms alone, {beside.p99 * 1e3:.1f} ms beside it, {ratio:.2f} x"
    print(said)
    assert beside.recorded > 0.005 * beside.seconds * EMBEDDED.capacity, said
    assert ratio <= 1.2, said
