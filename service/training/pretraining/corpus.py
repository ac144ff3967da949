"""Reads the development corpora into memory for pre-training: clips, their class and who speaks.

Only training parts are ever listed here; the report parts (ESC-10 fold 4, `val.csv` of the keywords,
`val` of the digits, the verification test speakers) have no reader in this module. A second, smaller
part can be held out of the training parts for choosing a recipe (`HeldOut`).

It does not know windows, augmentation or losses.
"""

import csv
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from service.training.pretraining.recipe import HeldOut
from service.training.speech import as_int16, phonemes, synthesise

SAMPLE_RATE = 16_000
EVENT_FOLDS = (1, 2, 3)
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_ROW = (2, 6)  # digits that are said in one breath

Samples = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Source:
    """One file, before it is decoded. `group` is the word's corpus, the speaker or the event's fold."""

    path: Path
    task: str  # "words", "speakers", "events" or "noise"
    label: str
    group: str
    text: str = ""  # what is said, where that is known


@dataclass(frozen=True, slots=True)
class Clip:
    """One decoded file: 16 kHz mono, 16 bit."""

    samples: Samples
    task: str
    label: str
    group: str
    text: str = ""
    phonemes: tuple[str, ...] = ()  # of the text, once they are asked for


@dataclass(frozen=True, slots=True)
class Corpus:
    train: tuple[Clip, ...]
    selection: tuple[Clip, ...]

    def of(self, task: str) -> tuple[Clip, ...]:
        """The training clips of one task."""
        return tuple(clip for clip in self.train if clip.task == task)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _last(names: Iterable[str], count: int) -> frozenset[str]:
    """The last `count` of the sorted distinct names: a split that needs no seed."""
    ordered = sorted(set(names))
    return frozenset(ordered[len(ordered) - count :]) if count else frozenset()


def _words(data: Path, held_out: HeldOut) -> Iterator[tuple[Source, bool]]:
    """Arabic keywords, English digits, Speech Commands (digits of both share a class), one wake word."""
    arabic = data / "arabic-speech-commands"
    rows = list(_rows(arabic / "train.csv"))
    speakers = [Path(row["file"]).name.split("_")[0] for row in rows]
    kept_out = _last(speakers, held_out.keyword_speakers)
    for row, speaker in zip(rows, speakers, strict=True):
        yield Source(arabic / row["file"], "words", f"ar:{row['class']}", "arabic"), speaker in kept_out

    digits = data / "fsdd"
    rows = [row for row in _rows(digits / "metadata.csv") if row["split"] == "train"]
    kept_out = _last((row["speaker"] for row in rows), held_out.digit_speakers)
    for row in rows:
        word = DIGIT_WORDS[int(row["digit"])]
        yield Source(digits / row["filename"], "words", f"en:{word}", "digits"), row["speaker"] in kept_out

    commands = data / "speech-commands-v0.01-sample"
    for line in (commands / "training_list.txt").read_text(encoding="utf-8").split("\n"):
        if line.strip():
            word = line.split("/")[0]
            yield Source(commands / line.strip(), "words", f"en:{word}", "commands", word), False

    extra = data / "pretraining-speech"
    for row in _rows(extra / "clips.csv"):
        if row["keyword"]:
            yield Source(extra / row["filename"], "words", f"en:{row['keyword']}", "wake"), False


def _speakers(data: Path, held_out: HeldOut) -> Iterator[tuple[Source, bool]]:
    root = data / "speechocean762-sv"
    pairs = [line.split() for line in (root / "train_list.txt").read_text(encoding="utf-8").split("\n") if line.strip()]
    kept_out = _last((speaker for speaker, _ in pairs), held_out.verification_speakers)
    texts = {row["path"]: row["text"] for row in _rows(root / "train_utterances.csv")}
    for speaker, path in pairs:
        source = Source(root / "wav" / path, "speakers", speaker, "speechocean", texts.get(path, ""))
        yield source, speaker in kept_out

    extra = data / "pretraining-speech"
    for row in _rows(extra / "clips.csv"):
        if row["speaker"]:
            yield Source(extra / row["filename"], "speakers", f"libri:{row['speaker']}", "librispeech"), False


def _events(data: Path, held_out: HeldOut) -> Iterator[tuple[Source, bool]]:
    """Sound events, and as `noise` those clips that the fixed noisy test condition does not use."""
    root = data / "esc10"
    reserved = {row["noise_file"] for row in _rows(data / "speechocean762-sv" / "noise15db.csv")}
    for row in _rows(root / "meta" / "esc50.csv"):
        fold = int(row["fold"])
        if fold not in EVENT_FOLDS:
            continue
        path = root / "audio" / row["filename"]
        yield Source(path, "events", row["category"], f"fold{fold}"), fold in held_out.event_folds
        if row["filename"] not in reserved and fold not in held_out.event_folds:
            yield Source(path, "noise", row["category"], "esc10"), False
    boiler = data / "arabic-speech-commands" / "background_noise" / "boiler.flac"
    yield Source(boiler, "noise", "boiler", "background"), False


def decode_file(path: Path) -> Samples:
    """A trusted corpus file as 16 kHz mono int16 `[N]`."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    with av.open(str(path)) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]).astype(np.int16, copy=False)


def read_corpus(data: Path, held_out: HeldOut, threads: int = 2) -> Corpus:
    """Decode every training file below `data` (about 4.5 hours, 0.5 GB as int16)."""
    listed = [*_words(data, held_out), *_speakers(data, held_out), *_events(data, held_out)]
    with ThreadPoolExecutor(threads) as pool:
        samples = list(pool.map(lambda pair: decode_file(pair[0].path), listed))
    clips = [
        (Clip(decoded, source.task, source.label, source.group, source.text), kept_out)
        for (source, kept_out), decoded in zip(listed, samples, strict=True)
    ]
    return Corpus(
        train=tuple(clip for clip, kept_out in clips if not kept_out),
        selection=tuple(clip for clip, kept_out in clips if kept_out),
    )


def synthesised_words(clips: int, seed: int, telephone: float = 0.0) -> tuple[Clip, ...]:
    """English digits by speech synthesisers, of the same classes as the recorded ones. Raises FileNotFoundError."""
    return tuple(
        Clip(as_int16(samples), "words", f"en:{word}", "synthesised", word)
        for word, samples in synthesise(DIGIT_WORDS, clips, seed, telephone=telephone)
    )


def synthesised_utterances(
    corpus: Corpus, clips: int, seed: int, telephone: float = 0.0, digits: float = 0.5
) -> tuple[Clip, ...]:
    """What the corpus's speakers read, and rows of digits (a share of `digits`). Raises FileNotFoundError."""
    rng = np.random.default_rng((seed, 3))
    texts = sorted({clip.text for clip in corpus.of("speakers") if clip.text})
    rows = [
        " ".join(rng.choice(DIGIT_WORDS, int(rng.integers(*DIGIT_ROW, endpoint=True))))
        if not texts or rng.random() < digits
        else str(rng.choice(texts))
        for _ in range(clips)
    ]
    return tuple(
        Clip(as_int16(samples), "utterances", "", "synthesised", text)
        for text, samples in synthesise(rows, clips, seed, telephone=telephone)
    )


def with_phonemes(corpus: Corpus) -> Corpus:
    """The corpus with the phonemes of every text of its training clips. Raises FileNotFoundError."""
    texts = sorted({clip.text for clip in corpus.train if clip.text})
    spelt = dict(zip(texts, phonemes(texts), strict=True))
    return replace(corpus, train=tuple(replace(clip, phonemes=spelt.get(clip.text, ())) for clip in corpus.train))
