"""What simple features with a linear classifier tell of the musical styles: `python -m tests.music.floors OUT`.

Two sets of features of a clip. The baseline hears tempo and register alone: onsets a second, the strongest period, how
strong it is, and where the strongest partial lies (10th, 50th and 90th percentile of the frames). The floor hears MFCC
and their changes, rhythm (autocorrelation of the onset envelope), and harmony whatever the key. Logistic regression,
its penalty chosen on the selection part. Intervals are percentile bootstraps over the works of the report part.
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from service.audio.decode import decode
from tests.benchmarks.floors import COSINES, linear, log_mel

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
REPLICATES = 2000
HOP = 0.01  # seconds between frames of `log_mel`
PERIODS = np.geomspace(0.15, 2.0, 40)  # seconds
LOWEST, HIGHEST = 60.0, 4000.0  # Hz


def onsets(mel: torch.Tensor) -> NDArray[np.float64]:
    """The onset envelope `[T - 1]` of a log-mel spectrogram: what grows louder, summed over the bands."""
    return (mel[1:] - mel[:-1]).clamp(min=0).mean(dim=1).double().numpy()


def periodicity(envelope: NDArray[np.float64]) -> NDArray[np.float64]:
    """Autocorrelation at `PERIODS`, 1 at none, of the envelope smoothed over 70 ms."""
    smooth = np.convolve(envelope, np.hanning(9), "same")
    centred = smooth - smooth.mean()
    lags = np.round(PERIODS / HOP).astype(int)
    return np.array([centred[lag:] @ centred[:-lag] for lag in lags]) / max(float(centred @ centred), 1e-12)


def period(strengths: NDArray[np.float64]) -> float:
    """The shortest of those nearly as strong as the strongest, seconds."""
    return float(PERIODS[np.flatnonzero(strengths >= 0.85 * strengths.max())[0]])


def spectra(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Power `[T, F]` of long frames, and the frequencies `[F]`, Hz, within `LOWEST` and `HIGHEST`."""
    power = torch.stft(samples, 4096, 1600, window=torch.hann_window(4096), return_complex=True).abs().square().T
    hertz = torch.arange(power.shape[1]) * 16_000 / 4096
    kept = (hertz >= LOWEST) & (hertz <= HIGHEST)
    return power[:, kept], hertz[kept]


def tempo_and_register(samples: torch.Tensor) -> NDArray[np.float64]:
    envelope = onsets(log_mel(samples.numpy()))
    peaks = (envelope[1:-1] > envelope[:-2]) & (envelope[1:-1] >= envelope[2:])
    loud = envelope[1:-1] > envelope.mean() + envelope.std()
    strengths = periodicity(envelope)
    power, hertz = spectra(samples)
    heights = np.log2(hertz[power.argmax(dim=1)].numpy())
    rate = (peaks & loud).sum() / (HOP * len(envelope))
    return np.array([rate, np.log(period(strengths)), strengths.max(), *np.percentile(heights, (10, 50, 90))])


def simple(samples: torch.Tensor) -> NDArray[np.float64]:
    mel = log_mel(samples.numpy())
    cepstra = mel @ COSINES
    changes = cepstra[1:] - cepstra[:-1]
    power, hertz = spectra(samples)
    classes = torch.remainder(torch.round(12 * torch.log2(hertz / 440)), 12).long()
    chroma = torch.zeros(len(power), 12).index_add_(1, classes, power.sqrt())
    chroma = chroma / chroma.sum(dim=1, keepdim=True).clamp(min=1e-9)
    harmony = [
        torch.fft.rfft(chroma.mean(dim=0)).abs()[1:],
        chroma.square().sum(dim=1).quantile(torch.tensor([0.1, 0.5, 0.9])),
    ]
    statistics = [cepstra.mean(dim=0), cepstra.std(dim=0), changes.std(dim=0), *harmony]
    return np.concatenate([torch.cat(statistics).numpy(), periodicity(onsets(mel))])


def right(features: NDArray[np.float64], labels: NDArray[np.int64], splits: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Which clips of the report part a linear classifier names right."""
    train, selection, report = (splits == part for part in ("train", "selection", "report"))
    scaled = (features - features[train].mean(axis=0)) / (features[train].std(axis=0) + 1e-9)
    inputs, targets = torch.from_numpy(scaled).float(), torch.from_numpy(labels)
    found = [
        linear(inputs[torch.from_numpy(train)], targets[torch.from_numpy(train)], penalty)(inputs).numpy() == labels
        for penalty in PENALTIES
    ]
    return max(found, key=lambda each: each[selection].mean())[report]


def interval(correct: NDArray[np.bool_], works: NDArray[np.str_]) -> tuple[float, float]:
    """Of the share that is right: 95 %, works being resampled."""
    _, numbers = np.unique(works, return_inverse=True)
    drawn = np.random.default_rng(0).integers(numbers.max() + 1, size=(REPLICATES, numbers.max() + 1))
    counts = np.stack([np.bincount(each, minlength=numbers.max() + 1) for each in drawn])[:, numbers]
    low, high = np.percentile(counts @ correct / counts.sum(axis=1), (2.5, 97.5))
    return float(low), float(high)


def main(root: Path) -> None:
    with (root / "clips.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    names = sorted({row["label"] for row in table})
    labels = np.array([names.index(row["label"]) for row in table])
    splits, works = np.array([row["split"] for row in table]), np.array([row["work"] for row in table])
    clips = [torch.from_numpy(decode((root / row["file"]).read_bytes()).samples) for row in table]
    kinds: dict[str, Callable[[torch.Tensor], NDArray[np.float64]]] = {
        "tempo and register": tempo_and_register,
        "simple features": simple,
    }
    print(f"{len(names)} classes, {np.sum(splits == 'report')} clips of the report part; chance {1 / len(names):.3f}")
    for kind, features in kinds.items():
        correct = right(np.stack([features(samples) for samples in clips]), labels, splits)
        low, high = interval(correct, works[splits == "report"])
        print(f"{kind}: accuracy {correct.mean():.3f} ({low:.3f} to {high:.3f})", flush=True)
        for number, name in enumerate(names):
            print(f"  {name}: {correct[labels[splits == 'report'] == number].mean():.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
