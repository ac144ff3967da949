from pathlib import Path

import pytest

from service.training.datasets.dataset import BadDataset
from service.training.datasets.load import check_classes, guess_source, load_dataset
from service.training.sources import DigitSource, EscSource, KeywordSource
from tests.training.miniature import (
    make_classes,
    make_digits,
    make_esc,
    make_fsd50k,
    make_gtzan,
    make_keywords,
    make_speech_commands,
    make_table,
    make_voxceleb,
    write_table,
)


def test_esc_keeps_folds_apart(tmp_path: Path) -> None:
    dataset = load_dataset(make_esc(tmp_path, clips=1), EscSource(kind="esc"))
    assert dataset.labels == ("dog", "rain", "rooster")
    assert {clip.group for clip in dataset.train} == {"1", "2"}
    assert {clip.group for clip in dataset.selection} == {"3"}
    assert {clip.group for clip in dataset.report().clips} == {"4"}
    assert all(clip.path.exists() for clip in dataset.train + dataset.selection)


def test_keywords_hold_out_the_last_speakers(tmp_path: Path) -> None:
    dataset = load_dataset(make_keywords(tmp_path), KeywordSource(kind="keywords", selection_speakers=2))
    assert dataset.labels == ("up", "zero", "zoom in")
    assert {clip.group for clip in dataset.train} == {"00000000", "00000001"}
    assert {clip.group for clip in dataset.selection} == {"00000002", "00000003"}
    assert len(dataset.report().clips) == 18


def test_keywords_do_not_open_the_report_list(tmp_path: Path) -> None:
    root = make_keywords(tmp_path)
    (root / "val.csv").write_bytes(b"\xff\xfepoison")
    dataset = load_dataset(root, KeywordSource(kind="keywords", selection_speakers=1))
    with pytest.raises(BadDataset, match=r"val\.csv is not a CSV"):
        dataset.report()


def test_labels_that_only_the_report_part_has_are_named(tmp_path: Path) -> None:
    root = make_keywords(tmp_path)
    write_table(root / "val.csv", [{"file": "dataset/down/00000091_NO_00.flac", "class": "down"}])
    dataset = load_dataset(root, KeywordSource(kind="keywords", selection_speakers=1))
    with pytest.raises(BadDataset, match="label 'down' is not one of the training split's"):
        dataset.report()


def test_digits_split_by_speaker(tmp_path: Path) -> None:
    dataset = load_dataset(make_digits(tmp_path), DigitSource(kind="digits"))
    assert dataset.labels == ("0", "1", "2")
    assert {clip.group for clip in dataset.train} == {"bob", "cid"}
    assert {clip.group for clip in dataset.selection} == {"dan"}
    assert {clip.group for clip in dataset.report().clips} == {"ann"}


def test_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="does not exist"):
        load_dataset(tmp_path / "nothing", EscSource(kind="esc"))
    with pytest.raises(BadDataset, match=r"esc50\.csv cannot be read"):
        load_dataset(tmp_path, EscSource(kind="esc"))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("filename,fold\na,1\n", "lacks category"),
        ("filename,fold,category\n", "has no rows"),
        ("filename,fold,category\na.flac,1,\n", "line 2"),
        ("filename,fold,category\na.flac,1,dog\n", "has no fold 2"),
    ],
)
def test_refuses_other_tables(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text(table)
    with pytest.raises(BadDataset, match=said):
        load_dataset(tmp_path, EscSource(kind="esc"))


def test_refuses_to_hold_out_everyone(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="4 speakers cannot be held out of 4"):
        load_dataset(make_keywords(tmp_path), KeywordSource(kind="keywords", selection_speakers=4))


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    dataset = load_dataset(make_esc(tmp_path, clips=1), EscSource(kind="esc"))
    readable = tuple(clip for clip in dataset.train if dataset.labels[clip.target] != "rain")
    with pytest.raises(BadDataset, match="no readable training clip of rain"):
        check_classes(dataset, readable, dataset.selection)
    with pytest.raises(BadDataset, match="selection part"):
        check_classes(dataset, dataset.train, ())


def test_layouts_are_recognised(tmp_path: Path) -> None:
    assert guess_source(make_esc(tmp_path / "a", clips=1)).kind == "esc"
    assert guess_source(make_keywords(tmp_path / "b")).kind == "keywords"
    assert guess_source(make_digits(tmp_path / "c")).kind == "digits"
    assert guess_source(make_gtzan(tmp_path / "d", clips=1)).kind == "gtzan"
    assert guess_source(make_speech_commands(tmp_path / "e")).kind == "speech-commands"
    assert guess_source(make_fsd50k(tmp_path / "f", clips=1)).kind == "fsd50k"
    assert guess_source(make_voxceleb(tmp_path / "g", clips=1)).kind == "voxceleb"
    assert guess_source(make_classes(tmp_path / "h", clips=1)).kind == "folders"
    assert guess_source(make_table(tmp_path / "i", clips=2)).kind == "csv"
    (tmp_path / "j").mkdir()
    with pytest.raises(BadDataset, match="no layout known"):
        guess_source(tmp_path / "j")
