"""Miniature data sets of each layout. Classes and speakers are chords of their own, so that they can be learnt."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.synthesis import encode

RATE = 16_000
WORDS = ("up", "zoom in", "zero")


def chord(pitch: float, seconds: float, seed: int) -> NDArray[np.float32]:
    """Two tones an octave apart in a little noise, at a level and phase of the seed's own."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * pitch * factor * time + rng.uniform(0, 6)) for factor in (1, 2))
    return (rng.uniform(0.1, 0.4) * tones + 0.01 * rng.standard_normal(len(time))).astype(np.float32)


def write_clip(path: Path, pitch: float, seconds: float = 0.5, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(chord(pitch, seconds, seed), container="flac"))


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def make_esc(root: Path, clips: int = 4, seconds: float = 1.0) -> Path:
    """Four folds, three classes."""
    rows = []
    for fold in (1, 2, 3, 4):
        for target, category in enumerate(("dog", "rain", "rooster")):
            for take in range(clips):
                name = f"{fold}-{take}{target}-A-{target}.flac"
                write_clip(root / "audio" / name, 300 * 2**target, seconds, seed=hash((fold, target, take)) % 2**31)
                rows.append({"filename": name, "fold": fold, "target": target, "category": category})
    write_table(root / "meta" / "esc50.csv", rows)
    return root


def make_keywords(root: Path, speakers: int = 4, takes: int = 3) -> Path:
    """`train.csv` with so many speakers, `val.csv` with two more; a label contains a space."""
    for name, numbers in (("train.csv", range(speakers)), ("val.csv", range(90, 92))):
        rows = []
        for speaker in numbers:
            for index, word in enumerate(WORDS):
                for take in range(takes):
                    file = f"dataset/{word}/{speaker:08d}_NO_{take:02d}.flac"
                    write_clip(root / file, 300 * 2**index * (1 + 0.01 * (speaker % 7)), seed=speaker * 100 + take)
                    rows.append({"file": file, "class": word})
        write_table(root / name, rows)
    return root


def make_digits(root: Path, takes: int = 3) -> Path:
    """Three digits of four speakers, one of them the report part."""
    rows = []
    for number, speaker in enumerate(("ann", "bob", "cid", "dan")):
        for digit in range(3):
            for take in range(takes):
                name = f"recordings/{digit}_{speaker}_{take}.flac"
                write_clip(root / name, 300 * 2**digit, 0.3 + 0.1 * take, seed=number * 100 + take)
                split = "val" if speaker == "ann" else "train"
                rows.append({"filename": name, "digit": digit, "speaker": speaker, "split": split})
    write_table(root / "metadata.csv", rows)
    return root


def make_speakers(root: Path, speakers: int = 6, clips: int = 5) -> Path:
    """Speakers at pitches of their own, two more for the report; noises beside, one of them of the condition."""
    lines = []
    for speaker in range(speakers + 2):
        for clip in range(clips):
            file = f"S{speaker:03d}/{clip}.flac"
            write_clip(root / "wav" / file, 200 * 1.4**speaker, 0.6 + 0.1 * clip, seed=speaker * 100 + clip)
            if speaker < speakers:
                lines.append(f"S{speaker:03d} {file}")
    (root / "train_list.txt").write_text("\n".join(lines) + "\n")
    a, b = f"S{speakers:03d}", f"S{speakers + 1:03d}"
    trials = [f"1 {who}/0.flac {who}/{clip}.flac" for who in (a, b) for clip in range(1, clips)]
    trials += [f"0 {a}/{clip}.flac {b}/{clip}.flac" for clip in range(clips)]
    for name in ("veri_test.txt", "veri_test_hard.txt"):
        (root / name).write_text("\n".join(trials) + "\n")
    noises = root.parent / "noise"
    for index in range(6):
        noises.mkdir(exist_ok=True)
        noise = 0.1 * np.random.default_rng(index).standard_normal(RATE)
        (noises / f"{index}.flac").write_bytes(encode(noise.astype(np.float32), container="flac"))
    rows = [
        {"path": f"{who}/{clip}.flac", "noise_file": "0.flac", "noise_offset": 7, "snr_db": 15.0, "eq_a": 0.2}
        for who in (a, b)
        for clip in range(clips)
    ]
    write_table(root / "noise15db.csv", rows)
    return root
