"""What a clip costs a core beside the forward: `python -m tests.benchmarks.beside`."""

import time
from collections.abc import Callable

import numpy as np
import torch

from service.audio.activity import SpeechActivity
from service.audio.decode import decode
from service.audio.features import FILTER_BANK, PLAIN_SAMPLES, InputSpec
from tests.synthesis import CONTAINERS, encode, noise

SECONDS = 1.28  # of a clip
RUNS = 60


def milliseconds(work: Callable[[], object]) -> float:
    """Median processor time of the calling thread, of one call."""
    taken = []
    for _ in range(RUNS):
        started = time.thread_time_ns()
        work()
        taken.append(time.thread_time_ns() - started)
    return float(np.median(taken[RUNS // 4 :])) / 1e6


def costs() -> dict[str, float]:
    """Milliseconds by what is done."""
    sound = noise(SECONDS)
    found = {}
    for container in CONTAINERS:
        encoded = encode(np.repeat(sound, 2, axis=1) if container == "ogg" else sound, container=container)
        found[f"decode {container}"] = milliseconds(lambda encoded=encoded: decode(encoded))  # type: ignore[misc]
    samples, spec = torch.from_numpy(np.ascontiguousarray(sound[:, 0])), InputSpec(128)
    for name, features in (("plain samples", PLAIN_SAMPLES), ("filter bank", FILTER_BANK)):
        found[f"features: {name}"] = milliseconds(
            lambda features=features: features.windows(samples, spec)  # type: ignore[misc]
        )
    activity, long = SpeechActivity(), np.tile(sound[:, 0], 8)
    found["speech activity, a second of audio"] = milliseconds(lambda: activity.speech(long).seconds) / (8 * SECONDS)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"processor time of one core, a clip of {SECONDS} s at 16 kHz")
    for what, taken in costs().items():
        print(f"{what:40} {taken:7.3f} ms")
