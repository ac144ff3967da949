"""A thread's number of cores is its own."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from service.engine.cores import use_cores


@pytest.fixture(autouse=True)
def restored_cores() -> object:
    cores = torch.get_num_threads()
    yield
    use_cores(cores)


def test_a_thread_keeps_its_cores_when_others_set_theirs() -> None:
    set_by_both, seen = threading.Barrier(2, timeout=10), {}

    def work(name: str, cores: int, first: Callable[[], object], second: Callable[[], object]) -> None:
        first()
        use_cores(cores)
        second()
        set_by_both.wait()
        torch.ones(1000, 1000).sum()  # an operation in parallel
        seen[name] = torch.get_num_threads()

    order = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        for each in (
            pool.submit(work, "worker", 2, lambda: None, order.set),
            pool.submit(work, "decoder", 1, lambda: order.wait(10), lambda: None),
        ):
            each.result(20)
    assert seen == {"worker": 2, "decoder": 1}
