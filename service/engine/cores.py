"""How many cores a thread's own operations may take."""

import torch


def use_cores(count: int) -> None:
    """Has the calling thread compute on so many cores, whatever other threads say of themselves later.

    When a thread first asks PyTorch, which its first parallel operation does, it takes over what any thread last
    set: one that only sets would lose its number to a thread that sets another in between.
    """
    torch.get_num_threads()
    torch.set_num_threads(count)
