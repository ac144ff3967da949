"""Synthesised words: as many voices as clips, made again by the same seed, and training clips like any other."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from service.audio.decode import DecodeLimits, decode
from service.training.augment import as_int16
from service.training.datasets.dataset import BadDataset
from service.training.datasets.load import load_dataset
from service.training.datasets.spoken import with_speech
from service.training.recipe import BadRecipe, Synthesis, parse_recipe
from service.training.sources import DigitSource
from service.training.speech import PROGRAMS, synthesise
from tests.training.miniature import make_digits

speaking = pytest.mark.skipif(any(shutil.which(name) is None for name in PROGRAMS), reason="needs espeak-ng and flite")


@speaking
def test_words_differ_in_voice_and_can_be_made_again() -> None:
    spoken = synthesise(("two", "six"), clips=6, seed=3)
    again = synthesise(("two", "six"), clips=6, seed=3)
    assert [word for word, _ in spoken] == ["two", "six"] * 3
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(spoken, again, strict=True))
    lengths = [len(samples) for _, samples in spoken]
    assert len(set(lengths)) == 6
    assert all(1_600 < length < 32_000 for length in lengths)  # 0.1 to 2 s


@speaking
def test_a_telephone_cuts_off_at_4_khz() -> None:
    def above(samples: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(samples)) ** 2
        return float(power[len(power) * 9 // 16 :].sum() / power.sum())

    (_, wide), (_, narrow) = (synthesise(("six",), 1, seed=3, telephone=chance)[0] for chance in (0.0, 1.0))
    assert len(wide) == len(narrow)
    assert above(narrow) < 1e-3 < above(wide)


def test_what_a_filter_takes_beyond_the_range_does_not_wrap() -> None:
    assert as_int16(np.array([-1.1, -1, 0, 0.5, 1, 1.1], np.float32)).tolist() == [
        -32767,
        -32767,
        0,
        16384,
        32767,
        32767,
    ]


def test_lacking_synthesisers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="espeak-ng and flite"):
        synthesise(("two",), clips=1, seed=0)
    dataset = load_dataset(make_digits(tmp_path / "digits"), DigitSource(kind="digits"))
    with pytest.raises(BadDataset, match="espeak-ng and flite"):
        with_speech(dataset, Synthesis(clips=1, words={dataset.labels[0]: "two"}), 0, tmp_path)


@speaking
def test_spoken_clips_join_the_training_part_alone(tmp_path: Path) -> None:
    dataset = load_dataset(make_digits(tmp_path / "digits"), DigitSource(kind="digits"))
    words = dict(zip(dataset.labels, ("zero", "one"), strict=False))
    more = with_speech(dataset, Synthesis(clips=4, words=words), 0, tmp_path)
    added = more.train[len(dataset.train) :]
    assert [clip.target for clip in added] == [0, 1, 0, 1]
    assert {clip.group for clip in added} == {"synthesised"}
    assert more.selection == dataset.selection
    for clip in added:
        samples = decode(clip.path.read_bytes(), DecodeLimits()).samples
        assert 1_600 < len(samples) < 32_000
        assert np.abs(samples).max() > 0.05


def test_without_synthesis_a_data_set_stays_as_it_is(tmp_path: Path) -> None:
    dataset = load_dataset(make_digits(tmp_path / "digits"), DigitSource(kind="digits"))
    assert with_speech(dataset, Synthesis(), 0, tmp_path) is dataset


def test_unknown_labels_are_refused(tmp_path: Path) -> None:
    dataset = load_dataset(make_digits(tmp_path / "digits"), DigitSource(kind="digits"))
    with pytest.raises(BadDataset, match="'eleven' is not one of"):
        with_speech(dataset, Synthesis(clips=1, words={"eleven": "eleven"}), 0, tmp_path)


@pytest.mark.parametrize(
    ("synthesis", "message"),
    [
        ({"clips": 5}, "synthesis: .*it is empty"),
        ({"clips": 5, "words": {"0": "-w/etc/passwd"}}, "does not begin with -"),
        ({"clips": 5, "words": {"0": " "}}, "is not empty"),
        ({"clip": 5}, "synthesis.clip: unknown key"),
    ],
)
def test_synthesis_that_cannot_be_is_refused(synthesis: dict[str, object], message: str) -> None:
    table = {
        "name": "spoken",
        "task": "classification",
        "data": {"kind": "digits"},
        "input": {"window_frames": 64},
        "synthesis": synthesis,
    }
    with pytest.raises(BadRecipe, match=message):
        parse_recipe(table)


def test_synthesised_voices_are_no_speakers() -> None:
    table = {
        "name": "spoken",
        "task": "verification",
        "data": {"kind": "speakers"},
        "input": {"window_frames": 64},
        "synthesis": {"clips": 5, "words": {"a": "b"}},
    }
    with pytest.raises(BadRecipe, match="no speakers"):
        parse_recipe(table)
