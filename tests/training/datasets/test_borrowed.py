"""Clips that a data set borrows from another: for training alone, and those of its list alone."""

from pathlib import Path

import pytest

from service.training.datasets.borrowed import with_borrowed
from service.training.datasets.dataset import BadDataset, Dataset
from service.training.datasets.load import load_dataset
from service.training.recipe import BadRecipe, Borrowed, parse_recipe
from service.training.sources import DigitSource
from tests.training.miniature import make_digits, write_clip

TABLE = {"name": "d", "task": "classification", "data": {"kind": "digits"}, "input": {"window_frames": 64}}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    for number, word in enumerate(("zero", "one", "two")):
        for take in "ab":
            write_clip(tmp_path / "words" / word / f"{take}.wav", 200.0 + 50 * number)
    (tmp_path / "words" / "train.txt").write_text("zero/a.wav\none/a.wav\none/b.wav\n", encoding="utf-8")
    return load_dataset(make_digits(tmp_path / "digits"), DigitSource(kind="digits"))


def added(dataset: Dataset, borrowed: Borrowed) -> list[tuple[str, int, str]]:
    more = with_borrowed(dataset, borrowed)
    assert more.selection == dataset.selection
    assert more.train[: len(dataset.train)] == dataset.train
    return [
        (str(clip.path.relative_to(dataset.root)), clip.target, clip.group) for clip in more.train[len(dataset.train) :]
    ]


def test_every_clip_of_a_word_joins_the_training_part(dataset: Dataset) -> None:
    assert added(dataset, Borrowed(folder="../words", words={"1": "one"})) == [
        ("../words/one/a.wav", 1, "borrowed"),
        ("../words/one/b.wav", 1, "borrowed"),
    ]


def test_a_list_says_which_clips(dataset: Dataset) -> None:
    borrowed = Borrowed(folder="../words", list="train.txt", words={"0": "zero", "1": "one"})
    assert [path for path, _, _ in added(dataset, borrowed)] == [
        "../words/zero/a.wav",
        "../words/one/a.wav",
        "../words/one/b.wav",
    ]


@pytest.mark.parametrize(
    ("borrowed", "message"),
    [
        ({"folder": "../words", "words": {"77": "one"}}, "'77' is not one of"),
        ({"folder": "../words", "words": {"1": "eleven"}}, "eleven holds no clip to borrow for label '1'"),
        ({"folder": "../words", "list": "train.txt", "words": {"1": "two"}}, "two holds no clip"),
        ({"folder": "../nowhere", "words": {"1": "one"}}, "nowhere/one holds no clip"),
        ({"folder": "../words", "list": "none.txt", "words": {"1": "one"}}, r"none\.txt cannot be read"),
    ],
)
def test_what_cannot_be_borrowed_is_named(borrowed: dict[str, object], message: str, dataset: Dataset) -> None:
    with pytest.raises(BadDataset, match=message):
        with_borrowed(dataset, Borrowed.model_validate(borrowed))


def test_words_are_no_speakers() -> None:
    table = {**TABLE, "task": "verification", "data": {"kind": "speakers"}}
    with pytest.raises(BadRecipe, match="no speakers"):
        parse_recipe({**table, "borrowed": [{"folder": "x", "words": {"a": "b"}}]})


def test_a_recipe_names_its_words() -> None:
    with pytest.raises(BadRecipe, match=r"borrowed\.0\.words"):
        parse_recipe({**TABLE, "borrowed": [{"folder": "x", "words": {}}]})
