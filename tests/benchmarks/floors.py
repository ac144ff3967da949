"""Prints what simple features with a linear classifier reach on the development corpora: the floors of two adapters.

`python -m tests.benchmarks.floors ../shared/data`: digits by MFCC statistics of six segments and logistic regression;
voices in noise by mean and deviation of the loud frames' log-mel and linear discriminants (Fisher's), trained with
noise and a first-order equaliser like those of the trials, scored by cosine. No adapter and no backbone.
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchaudio
from numpy.typing import NDArray
from torch.nn import functional

from service.audio.decode import decode
from service.scoring.metrics import equal_error_rate
from service.training.augment import fixed_noise

Samples = NDArray[np.float32]
SEGMENTS, COEFFICIENTS = 6, 20
LOUD = 0.6  # share of the frames that are taken for speech
VIEWS = 3  # noisy ones of every training utterance
MEL = torchaudio.transforms.MelSpectrogram(16_000, 512, 400, 160, n_mels=40)
COSINES = torchaudio.functional.create_dct(COEFFICIENTS, 40, "ortho")


def log_mel(samples: Samples) -> torch.Tensor:
    """`[N]` -> `[T, 40]`."""
    return (MEL(torch.from_numpy(np.ascontiguousarray(samples, np.float32))) + 1e-8).log().T


def read(path: Path) -> Samples:
    return decode(path.read_bytes()).samples


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def digits(root: Path) -> float:
    """Accuracy on the speaker of the report part."""
    table = rows(root / "metadata.csv")
    features = []
    for row in table:
        segments = (log_mel(read(root / row["filename"])) @ COSINES).tensor_split(SEGMENTS)
        features.append(torch.cat([torch.cat([part.mean(dim=0), part.std(dim=0, correction=0)]) for part in segments]))
    inputs, labels = torch.stack(features), torch.tensor([int(row["digit"]) for row in table])
    training = torch.tensor([row["split"] == "train" for row in table])
    inputs = (inputs - inputs[training].mean(dim=0)) / inputs[training].std(dim=0)
    told = linear(inputs[training], labels[training], 1 / int(training.sum()))(inputs[~training])
    return float((told == labels[~training]).float().mean())


def linear(inputs: torch.Tensor, labels: torch.Tensor, penalty: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Logistic regression `[N, F]` -> classes: tells the class of each row. `penalty` of the squared weights / 2."""
    weight = torch.zeros(inputs.shape[1], int(labels.max()) + 1, requires_grad=True)
    bias = torch.zeros(weight.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = functional.cross_entropy(inputs @ weight + bias, labels) + penalty * weight.square().sum() / 2
        value.backward()
        return value

    optimiser.step(loss)
    return lambda given: (given @ weight + bias).argmax(dim=1)


def statistics(samples: Samples) -> NDArray[np.float64]:
    frames = log_mel(samples).double()
    loud = frames[frames.mean(dim=1).argsort()[int((1 - LOUD) * len(frames)) :]]
    return torch.cat([loud.mean(dim=0), loud.std(dim=0)]).numpy()


def voices(root: Path, noises: Path) -> dict[str, float]:
    """Equal error rates of the trials, clean and in the fixed noise."""
    rng = np.random.default_rng(1)
    condition = {row["path"]: row for row in rows(root / "noise15db.csv")}
    used = {row["noise_file"] for row in condition.values()}
    others = [read(path) for path in sorted(noises.glob("[123]-*.flac")) if path.name not in used]
    inputs, speakers = [], []
    for line in (root / "train_list.txt").read_text().splitlines():
        speaker, path = line.split()
        samples = read(root / "wav" / path)
        for view in range(1 + VIEWS):
            noise = others[int(rng.integers(len(others)))]
            shift, snr, tilt = int(rng.integers(len(noise))), rng.uniform(10, 20), rng.uniform(-0.6, 0.6)
            inputs.append(statistics(fixed_noise(samples, noise, shift, snr, tilt) if view else samples))
            speakers.append(speaker)
    given, names = np.stack(inputs), np.array(speakers)
    means = {name: given[names == name].mean(axis=0) for name in sorted(set(speakers))}
    inner = np.cov((given - np.stack([means[name] for name in speakers])).T)
    values, vectors = np.linalg.eigh(inner + 1e-3 * np.trace(inner) / len(inner) * np.eye(len(inner)))
    whitening = vectors / np.sqrt(values)
    middle = given.mean(axis=0)
    _, _, axes = np.linalg.svd((np.stack(list(means.values())) - middle) @ whitening, full_matrices=False)
    projection = whitening @ axes[:40].T
    errors = {}
    for name in ("veri_test", "veri_test_hard"):
        trials = [line.split() for line in (root / f"{name}.txt").read_text().splitlines()]
        for noisy in (False, True):
            embedded = {}
            for path in {path for _, *paths in trials for path in paths}:
                samples, row = read(root / "wav" / path), condition[path]
                if noisy:
                    noise = read(noises / row["noise_file"])
                    offset = int(row["noise_offset"])
                    samples = fixed_noise(samples, noise, offset, float(row["snr_db"]), float(row["eq_a"]))
                vector = (statistics(samples) - middle) @ projection
                embedded[path] = vector / np.linalg.norm(vector)
            scores = np.array([embedded[one] @ embedded[other] for _, one, other in trials])
            target = np.array([label == "1" for label, _, _ in trials])
            errors[name + (" noise15db" if noisy else "")] = equal_error_rate(scores, target)[0]
    return errors


if __name__ == "__main__":
    data = Path(sys.argv[1])
    print(f"digits, accuracy on the speaker of the report part: {digits(data / 'fsdd'):.3f}", flush=True)
    for trials, error in voices(data / "speechocean762-sv", data / "esc10" / "audio").items():
        print(f"speaker, EER on {trials}: {error:.3f}")
