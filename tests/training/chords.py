"""A corpus for pre-training that is made of chords, and what follows a run on it."""

import numpy as np

from service.training.pretraining.corpus import Clip, Corpus
from tests.training.miniature import chord


def _clip(pitch: float, task: str, label: str, group: str, seed: int) -> Clip:
    return Clip((chord(pitch, 0.6, seed) * 32767).astype(np.int16), task, label, group)


def make_corpus() -> Corpus:
    """Three words, voices and events, each a chord of its own pitch, and noise."""
    clips = []
    for seed in range(6):
        for number in range(3):
            pitch = 250.0 * 2**number
            clips.append(_clip(pitch, "words", f"ar:{number}", "arabic", seed))
            clips.append(_clip(pitch * 1.2, "speakers", f"speaker{number}", "speechocean", seed))
            clips.append(_clip(pitch * 1.5, "events", f"event{number}", "fold1", seed))
        clips.append(_clip(3000, "noise", "hiss", "esc10", seed))
    return Corpus(tuple(clips), ())


class Journal:
    """Keeps what a run reports; stops it before a step when asked to."""

    def __init__(self, stop: tuple[str, int] | None = None) -> None:
        self.stop = stop
        self.losses: dict[str, list[float]] = {"filter bank": [], "tasks": []}
        self.parts: dict[str, list[float]] = {}

    def __call__(self, stage: str, step: int, losses: dict[str, float]) -> None:
        if self.stop == (stage, step):
            raise KeyboardInterrupt
        self.losses[stage].append(sum(losses.values()))
        for name, loss in losses.items():
            self.parts.setdefault(name, []).append(loss)
