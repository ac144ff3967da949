"""Soundscapes with known onsets: clips of a data set over noise, with gaps between them, and the table that tells.

Everything random follows from the seed and the soundscape's number.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from service.audio.waveform import SAMPLING_RATE
from service.errors import InvalidRequest
from service.training.augment import COLOURS, Random, as_int16, coloured_noise, crop
from service.training.datasets.dataset import BadDataset, Clip, Dataset, Span, audio_files
from service.training.recordings import Recordings, Samples
from service.training.sources import Part

TABLE = "events.csv"
COLUMNS = ("file", "start", "end", "label")
NOISE_DB = (-60.0, -45.0)  # level of quiet noise, relative to full scale
AUDIBLE_DB = -30.0  # below a clip's loudest 50 ms its ends are silence
AUDIBLE_SAMPLES = 800
PEAK = 0.9  # of full scale, where a soundscape would be louder


@dataclass(frozen=True, slots=True)
class Scene:
    """What soundscapes are like.

    Args:
        seconds: length of each.
        gap: shortest and longest time from one event's end to the next one's onset, seconds.
        snr: lowest and highest level of an event over the noise, dB.
        longest: seconds of a clip that are heard at most.
    """

    seconds: float = 60.0
    gap: tuple[float, float] = (2.0, 8.0)
    snr: tuple[float, float] = (15.0, 30.0)
    longest: float = 10.0

    def __post_init__(self) -> None:
        if not (0 <= self.gap[0] <= self.gap[1] and self.snr[0] <= self.snr[1] and self.seconds > self.gap[1] >= 0):
            raise InvalidRequest(
                f"expected low before high and gaps shorter than a soundscape, got {self.seconds:g} s, gaps of "
                f"{self.gap[0]:g} to {self.gap[1]:g} s, {self.snr[0]:g} to {self.snr[1]:g} dB"
            )


def make_soundscapes(
    dataset: Dataset,
    part: Part,
    out: Path,
    count: int,
    scene: Scene,
    *,
    seed: int = 0,
    noise: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write `count` soundscapes of a part's clips to `out`, wav each, and `events.csv` with what is heard when.

    Args:
        noise: folder of noises to put them over; coloured noise without it.

    Returns:
        how many events there are.

    Raises:
        BadDataset: no clip of the part can be read, or no noise.
    """
    clips = {"train": dataset.train, "selection": dataset.selection}.get(part) or dataset.report().clips
    recordings = Recordings()
    readable = set(recordings.readable(clip.span for clip in clips))
    heard = [clip for clip in clips if clip.span in readable]
    noises = [] if noise is None else list(recordings.readable(Span(file) for file in audio_files(noise)))
    if not heard or (noise is not None and not noises):
        raise BadDataset(f"{dataset.root if not heard else noise}: no clip there can be read")
    out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str, str]] = []
    for number in range(count):
        progress(number, count)
        rng, file = np.random.default_rng((seed, number)), f"{number:04d}.wav"
        samples, events = soundscape(heard, noises, recordings, scene, rng)
        _write_wav(out / file, samples)
        for clip, start, end in events:
            labels = (dataset.labels[target] for target in clip.targets)
            rows += [(file, f"{start:.4f}", f"{end:.4f}", label) for label in labels]
    with (out / TABLE).open("w", newline="", encoding="utf-8") as table:
        csv.writer(table, lineterminator="\n").writerows((COLUMNS, *rows))
    return len(rows)


def soundscape(
    clips: Sequence[Clip], noises: Sequence[Span], recordings: Recordings, scene: Scene, rng: Random
) -> tuple[Samples, list[tuple[Clip, float, float]]]:
    """One soundscape: samples `[N]`, and the clips in it with their start and end, seconds."""
    length = int(scene.seconds * SAMPLING_RATE)
    ground = _ground(length, noises, recordings, rng)
    level = float(np.sqrt(np.mean(ground**2)))
    samples, events = ground.copy(), list[tuple[Clip, float, float]]()
    at = float(rng.uniform(0, scene.gap[1]))
    while True:
        clip = clips[int(rng.integers(len(clips)))]
        sound = audible(recordings.samples(clip.span))[: int(scene.longest * SAMPLING_RATE)]
        first = round(at * SAMPLING_RATE)
        if first + len(sound) > length:
            break
        wanted = level * 10 ** (float(rng.uniform(*scene.snr)) / 20)
        samples[first : first + len(sound)] += sound * (wanted / max(float(np.sqrt(np.mean(sound**2))), 1e-9))
        end = (first + len(sound)) / SAMPLING_RATE
        events.append((clip, first / SAMPLING_RATE, end))
        at = end + float(rng.uniform(*scene.gap))
    return samples * min(1.0, PEAK / float(np.abs(samples).max())), events


def audible(samples: Samples) -> Samples:
    """A clip without the silence at its ends."""
    frames = len(samples) // AUDIBLE_SAMPLES
    if frames == 0:
        return samples
    levels = np.sqrt(np.mean(samples[: frames * AUDIBLE_SAMPLES].reshape(frames, -1) ** 2, axis=1))
    loud = np.flatnonzero(levels >= levels.max() * 10 ** (AUDIBLE_DB / 20))
    return samples[loud[0] * AUDIBLE_SAMPLES : (loud[-1] + 1) * AUDIBLE_SAMPLES]


def _ground(length: int, noises: Sequence[Span], recordings: Recordings, rng: Random) -> Samples:
    if noises:
        noise = recordings.samples(noises[int(rng.integers(len(noises)))])
        noise = crop(np.resize(noise, max(length, len(noise))), length, rng)
    else:
        noise = coloured_noise(length, float(rng.uniform(max(0.0, COLOURS[0]), COLOURS[1])), rng)
    level = 10 ** (float(rng.uniform(*NOISE_DB)) / 20)
    return noise * np.float32(level / max(float(np.sqrt(np.mean(noise**2))), 1e-9))


def _write_wav(path: Path, samples: Samples) -> None:
    with av.open(str(path), "w", format="wav") as file:
        stream = file.add_stream("pcm_s16le", rate=SAMPLING_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(as_int16(samples)[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLING_RATE
        file.mux([*stream.encode(frame), *stream.encode(None)])
