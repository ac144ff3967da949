"""Makes the batch of any step of pre-training from the corpus, the recipe's settings and the step's number.

The same seed and step give the same batch, which is what makes a resumed run equal to an uninterrupted
one. It does not know the model.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from service.training.pretraining.augment import Distortion, cut, distort, mix_up, noise_bank
from service.training.pretraining.corpus import Clip, Corpus
from service.training.pretraining.recipe import FilterBankStage, TaskStage
from service.training.pretraining.sounds import SOUNDS, synthetic_bank

Signal = npt.NDArray[np.float32]
Random = np.random.Generator

WORD_DISTORTION = Distortion(noise_chance=0.35, noise_low=8)
SPEAKER_DISTORTION = Distortion(
    speed=0.0, gain=6.0, noise_chance=0.75, noise_low=5, noise_high=25, equaliser_chance=0.5, tilt=0.7
)
UTTERANCE_DISTORTION = Distortion(speed=0.15, noise_chance=0.35, noise_low=8, band_limit_chance=0.3)
EVENT_DISTORTION = Distortion(speed=0.2, noise_chance=0.3, noise_low=10)
ANY_DISTORTION = Distortion(
    gain=20, noise_chance=0.4, noise_low=0, noise_high=40, equaliser=9, tilt=0.7, band_limit_chance=0.15
)
EVENT_TRIES = 3  # windows of a sound event that are drawn to keep the loudest: the events may be short


@dataclass(frozen=True, slots=True)
class Classes:
    """How many classes each head tells apart; no phonemes where none are learnt."""

    words: int
    events: int
    sounds: int
    speakers: int
    phonemes: int = 0


@dataclass(frozen=True, slots=True)
class Utterances:
    """Whole utterances `[U, N]` with silence after them, and what is said as numbers from 1 `[U, L]`, filled with 0."""

    waveform: Tensor
    samples: Tensor  # [U], without the silence
    phonemes: Tensor
    counts: Tensor  # [U], of the phonemes


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: short windows of words `[W, N]`, long ones of speakers, events, sounds (in this order) `[L, M]`."""

    words: Tensor
    word_labels: Tensor
    long: Tensor
    speaker_labels: Tensor
    event_targets: Tensor  # [events, classes], sums to one
    sound_labels: Tensor
    utterances: Utterances | None = None


class Sampler:
    """Draws batches. Class names are sorted, so that a head's rows mean the same after a resume."""

    def __init__(self, corpus: Corpus, stage: TaskStage, seed: int, sounds_per_class: int = 40) -> None:
        self.stage, self.sizes, self.seed = stage, stage.sizes, seed
        self.word_distortion = replace(WORD_DISTORTION, speed=stage.word_speed)
        rng = np.random.default_rng(seed)
        self.word_names = sorted({clip.label for clip in corpus.of("words")})
        self.event_names = sorted({clip.label for clip in corpus.of("events")})
        self.speaker_names = sorted({clip.label for clip in corpus.of("speakers")})
        self.words = {
            group: by_class([clip for clip in corpus.of("words") if clip.group == group]) for group in stage.word_shares
        }
        self.events = by_class(corpus.of("events"))
        self.speakers = {
            group: by_class([clip for clip in corpus.of("speakers") if clip.group == group])
            for group in ("speechocean", "librispeech")
        }
        said = [clip for clip in corpus.train if clip.phonemes and self._fits(clip)] if self.sizes.utterances else []
        self.symbols = sorted({symbol for clip in said for symbol in clip.phonemes})
        recorded = [clip for clip in said if clip.group != "synthesised"]
        self.utterances = (recorded, [clip for clip in said if clip.group == "synthesised"])
        self.sounds, self.sound_labels = synthetic_bank(sounds_per_class, 3 * self.sizes.long_window // 2, rng)
        self.speech = [clip.samples for clip in corpus.train if clip.task != "noise"]
        self.noises = [clip.samples for clip in corpus.of("noise")]
        self.noises += noise_bank(max(8, len(self.noises)), 4 * self.sizes.long_window, rng)

    @property
    def classes(self) -> Classes:
        """A speaker counts once for every speed that the voice is played at."""
        speakers = len(self.speaker_names) * len(self.stage.speaker_speeds)
        return Classes(len(self.word_names), len(self.event_names), len(SOUNDS), speakers, len(self.symbols))

    def _fits(self, clip: Clip) -> bool:
        """Whether the slowest that an utterance is played at fits the window."""
        return len(clip.samples) <= self.sizes.utterance_window * (1 - UTTERANCE_DISTORTION.speed)

    def plain(self, step: int, stage: FilterBankStage) -> Tensor:
        """Any audio, strongly distorted `[rows, window]`: what the filter bank learns from."""
        rng = np.random.default_rng((self.seed, step, 1))
        sources = (self.speech, self.sounds, self.noises)
        rows = []
        for kind in rng.choice(len(sources), stage.rows, p=(0.6, 0.15, 0.25)):
            samples = sources[kind][int(rng.integers(0, len(sources[kind])))]
            rows.append(cut(samples, stage.window, _speed(ANY_DISTORTION, rng), rng))
        return distort(np.stack(rows), self.noises, ANY_DISTORTION, rng)

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        rng = np.random.default_rng((self.seed, step))
        words, word_labels = self._words(rng)
        speakers, speaker_labels = self._speakers(rng)
        events, targets = self._events(rng)
        sounds, sound_labels = self._sounds(rng)
        long = [
            distort(speakers, self.noises, SPEAKER_DISTORTION, rng),
            distort(events, self.noises, EVENT_DISTORTION, rng),
            distort(sounds, self.noises, EVENT_DISTORTION, rng),
        ]
        return Batch(
            words=distort(words, self.noises, self.word_distortion, rng),
            word_labels=torch.tensor(word_labels),
            long=torch.cat(long),
            speaker_labels=torch.tensor(speaker_labels),
            event_targets=targets,
            sound_labels=torch.tensor(sound_labels),
            utterances=self._utterances(rng) if self.symbols else None,
        )

    def _words(self, rng: Random) -> tuple[Signal, list[int]]:
        groups = [group for group in self.stage.word_shares if self.words[group]]
        shares = np.array([self.stage.word_shares[group] for group in groups])
        rows, labels = [], []
        for group in rng.choice(groups, self.sizes.words, p=shares / shares.sum()):
            clip = _draw(self.words[group], rng)
            rows.append(cut(clip.samples, self.sizes.word_window, _speed(self.word_distortion, rng), rng))
            labels.append(self.word_names.index(clip.label))
        return np.stack(rows), labels

    def _speakers(self, rng: Random) -> tuple[Signal, list[int]]:
        groups = [group for group, classes in self.speakers.items() if classes]
        rows, labels = [], []
        for _ in range(self.sizes.speakers):
            clip = _draw(self.speakers[groups[int(rng.integers(0, len(groups)))]], rng)
            speed = int(rng.integers(0, len(self.stage.speaker_speeds)))
            rows.append(cut(clip.samples, self.sizes.long_window, self.stage.speaker_speeds[speed], rng))
            labels.append(speed * len(self.speaker_names) + self.speaker_names.index(clip.label))
        return np.stack(rows), labels

    def _events(self, rng: Random) -> tuple[Signal, Tensor]:
        rows, labels = [], []
        for _ in range(self.sizes.events):
            clip = _draw(self.events, rng)
            speed = _speed(EVENT_DISTORTION, rng)
            windows = [cut(clip.samples, self.sizes.long_window, speed, rng) for _ in range(EVENT_TRIES)]
            rows.append(max(windows, key=lambda window: float(np.mean(window**2))))
            labels.append(self.event_names.index(clip.label))
        blended, partners, share = mix_up(np.stack(rows), self.stage.mixing, rng)
        one_hot = np.eye(len(self.event_names), dtype=np.float32)[labels]
        targets = share[:, None] * one_hot + (1 - share)[:, None] * one_hot[partners]
        return blended, torch.from_numpy(targets)

    def _sounds(self, rng: Random) -> tuple[Signal, list[int]]:
        drawn = rng.integers(0, len(self.sounds), self.sizes.sounds)
        rows = [cut(self.sounds[row], self.sizes.long_window, _speed(EVENT_DISTORTION, rng), rng) for row in drawn]
        return np.stack(rows), [int(self.sound_labels[row]) for row in drawn]

    def _utterances(self, rng: Random) -> Utterances:
        recorded, synthesised = self.utterances
        share = self.stage.recorded_share if recorded and synthesised else float(bool(recorded))
        rows = np.zeros((self.sizes.utterances, self.sizes.utterance_window), np.float32)
        samples, spelt = [], []
        for row in rows:
            clips = recorded if rng.random() < share else synthesised
            clip = clips[int(rng.integers(0, len(clips)))]
            speed = _speed(UTTERANCE_DISTORTION, rng)
            samples.append(int(len(clip.samples) / speed))
            row[: samples[-1]] = cut(clip.samples, samples[-1], speed, rng)
            spelt.append(torch.tensor([self.symbols.index(symbol) + 1 for symbol in clip.phonemes]))
        return Utterances(
            waveform=distort(rows, self.noises, UTTERANCE_DISTORTION, rng),
            samples=torch.tensor(samples),
            phonemes=pad_sequence(spelt, batch_first=True),
            counts=torch.tensor([len(each) for each in spelt]),
        )


def by_class(clips: tuple[Clip, ...] | list[Clip]) -> list[list[Clip]]:
    """Clips gathered by label, labels sorted: drawing a class first balances the classes."""
    names = sorted({clip.label for clip in clips})
    return [[clip for clip in clips if clip.label == name] for name in names]


def _draw(classes: list[list[Clip]], rng: Random) -> Clip:
    members = classes[int(rng.integers(0, len(classes)))]
    return members[int(rng.integers(0, len(members)))]


def _speed(distortion: Distortion, rng: Random) -> float:
    return float(rng.uniform(1 - distortion.speed, 1 + distortion.speed))
