"""Miniature data sets of each layout. Classes and speakers are chords of their own, so that they can be learnt."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.synthesis import encode

RATE = 16_000
WORDS = ("up", "zoom in", "zero")

# The `[data]` tables of the sets below.
ESC = {
    "kind": "csv",
    "tables": [{"path": "meta/esc50.csv", "file": "audio/{filename}"}],
    "label": "category",
    "split": "fold",
    "parts": {"train": ["1", "2"], "selection": ["3"], "report": ["4"]},
}
KEYWORDS = {
    "kind": "csv",
    "tables": [{"path": "train.csv", "part": "train"}, {"path": "val.csv", "part": "report"}],
    "label": "class",
    "pattern": "(?P<speaker>[^/_]+)_[^/]*$",
    "held_out": 1,
}
DIGITS = {
    "kind": "csv",
    "tables": [{"path": "metadata.csv", "file": "{filename}"}],
    "label": "digit",
    "held_out": 1,
    "parts": {"train": ["train"], "report": ["val"]},
}
SPEAKERS = {
    "kind": "csv",
    "tables": [{"path": "train.csv", "file": "wav/{path}"}],
    "label": "speaker",
    "held_out": 2,
    "trials": {"clean": "veri_test.txt", "hard": "veri_test_hard.txt"},
    "condition": "noise15db.csv",
    "condition_noise": "../noise",
}


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
    rows = []
    for speaker in range(speakers + 2):
        for clip in range(clips):
            file = f"S{speaker:03d}/{clip}.flac"
            write_clip(root / "wav" / file, 200 * 1.4**speaker, 0.6 + 0.1 * clip, seed=speaker * 100 + clip)
            if speaker < speakers:
                rows.append({"path": file, "speaker": f"S{speaker:03d}"})
    write_table(root / "train.csv", rows)
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


def make_classes(root: Path, clips: int = 10, suffix: str = "wav") -> Path:
    """A folder for each of three classes, `<class>/<class>.00000.wav` and so on, and one that is none."""
    for target, name in enumerate(("blues", "jazz", "rock")):
        for number in range(clips):
            write_clip(root / name / f"{name}.{number:05d}.{suffix}", 300 * 2**target, seed=target * 100 + number)
    (root / "_background_noise_").mkdir(exist_ok=True)
    write_clip(root / "_background_noise_" / "hum.wav", 60)
    return root


def make_gtzan(root: Path, clips: int = 10) -> Path:
    """`genres/` with ten clips a genre, and a split in the form of the fault-filtered lists."""
    make_classes(root / "genres", clips)
    for name, numbers in (("train", range(6)), ("valid", range(6, 8)), ("test", range(8, 10))):
        lines = [f"{genre}/{genre}.{number:05d}.wav" for genre in ("blues", "jazz", "rock") for number in numbers]
        (root / f"{name}_filtered.txt").write_text("\n".join(lines) + "\n")
    return root


def make_speech_commands(root: Path) -> Path:
    """Three words of six speakers, one for each official list."""
    for target, word in enumerate(("go", "stop", "yes")):
        for speaker in range(6):
            name = f"{speaker:08x}_nohash_0.wav"
            write_clip(root / word / name, 300 * 2**target * (1 + 0.01 * speaker), seed=speaker)
    write_clip(root / "_background_noise_" / "hum.wav", 60)
    for name, speaker in (("validation", 4), ("testing", 5)):
        lines = [f"{word}/{speaker:08x}_nohash_0.wav" for word in ("go", "stop", "yes")]
        (root / f"{name}_list.txt").write_text("\n".join(lines) + "\n")
    return root


def make_fsd50k(root: Path, clips: int = 4) -> Path:
    """Three labels, single and in pairs: a pair is both chords at once."""
    rows: dict[str, list[dict[str, Any]]] = {"dev": [], "eval": []}
    names = ("Bark", "Rain", "Siren")
    number = 0
    for chosen in ((0,), (1,), (2,), (0, 1), (1, 2)):
        for take in range(clips + 2):
            number += 1
            pieces = [chord(300 * 2**target, 0.6, seed=number) for target in chosen]
            part = "dev" if take < clips + 1 else "eval"
            path = root / f"FSD50K.{part}_audio" / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(np.sum(pieces, axis=0) / 2, container="wav"))
            row = {"fname": number, "labels": ",".join(names[target] for target in chosen), "mids": "/m/0"}
            rows[part].append(row | ({"split": "train" if take < clips else "val"} if part == "dev" else {}))
    for part, table in rows.items():
        write_table(root / "FSD50K.ground_truth" / f"{part}.csv", table)
    return root


def make_voxceleb(root: Path, speakers: int = 5, clips: int = 4) -> Path:
    """So many speakers to train on and two for the trials, each in two videos."""
    for speaker in range(speakers + 2):
        for clip in range(clips):
            path = root / "wav" / f"id{10001 + speaker}" / f"video{clip % 2}" / f"{clip:05d}.wav"
            write_clip(path, 200 * 1.4**speaker, 0.6 + 0.1 * clip, seed=speaker * 100 + clip)
    a, b = (f"id{10001 + speakers + index}" for index in (0, 1))
    trials = [f"1 {who}/video0/00000.wav {who}/video{clip % 2}/{clip:05d}.wav" for who in (a, b) for clip in (1, 2, 3)]
    trials += [f"0 {a}/video{clip % 2}/{clip:05d}.wav {b}/video{clip % 2}/{clip:05d}.wav" for clip in range(clips)]
    (root / "veri_test.txt").write_text("\n".join(trials) + "\n")
    return root


def make_table(root: Path, clips: int = 6, separator: str = "") -> Path:
    """`clips.csv` of two classes; with a separator every third clip has both."""
    rows = []
    for target, label in enumerate(("high", "low")):
        for number in range(clips):
            name = f"audio/{label}-{number}.wav"
            write_clip(root / name, 900 / 3**target, seed=target * 100 + number)
            both = separator and number % 3 == 0
            split = "test" if number == clips - 1 else "val" if number == clips - 2 else "train"
            rows.append({"file": name, "label": f"high{separator} low" if both else label, "split": split})
    write_table(root / "clips.csv", rows)
    return root


def write_toml(path: Path, tables: dict[str, Any]) -> Path:
    """A recipe of plain values as a TOML file."""
    top = [f"{key} = {_toml(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    for name, table in tables.items():
        if isinstance(table, dict):
            top += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    path.write_text("\n".join(top) + "\n", encoding="utf-8")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return f"'{value}'" if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
