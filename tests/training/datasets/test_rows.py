"""What tables and folders say of clips, and what of it is refused."""

from pathlib import Path

import pytest

from service.training.datasets.dataset import BadDataset
from service.training.datasets.load import load_dataset
from service.training.recipe import Recipe
from service.training.sources import Source
from tests.training.datasets.test_load import FOLDERS, names, source
from tests.training.datasets.test_split import touch_clips
from tests.training.miniature import write_table


@pytest.mark.parametrize("key", ["group", "split", "start", "end"])
def test_columns_that_a_recipe_names_must_be_there(tmp_path: Path, key: str) -> None:
    write_table(tmp_path / "clips.csv", [{"file": f"{n}.wav", "label": "ab"[n % 2], "speaker": n} for n in range(9)])
    with pytest.raises(BadDataset, match=r"lacks spaeker, has 'file \| label \| speaker'"):
        load_dataset(tmp_path, source({"kind": "csv"}, **{key: "spaeker"}))
    with pytest.raises(ValueError, match=r"has no group \(\?P<spaeker>"):
        source({"kind": "folders"}, **{key: "spaeker"})


@pytest.mark.parametrize(("key", "name"), [("start", "start"), ("end", "end"), ("split", "split")])
def test_a_column_named_as_it_is_by_default_must_be_there_too(tmp_path: Path, key: str, name: str) -> None:
    write_table(tmp_path / "clips.csv", [{"file": f"{n}.wav", "label": "ab"[n % 2], "speaker": n} for n in range(9)])
    load_dataset(tmp_path, source({"kind": "csv"}))
    named = source({"kind": "csv"}, **{key: name})
    with pytest.raises(BadDataset, match=f"lacks {name}, has"):
        load_dataset(tmp_path, named)
    with pytest.raises(ValueError, match=r"has no group \(\?P<speaker>"):
        source({"kind": "folders"}, group="speaker")
    recipe = {"name": "a", "task": "classification", "data": named, "input": {"window_frames": 50}}
    assert Recipe.model_validate(recipe).model_dump(mode="json")["data"] == {"kind": "csv", key: name}  # as in a bundle


def test_classes_do_not_vanish(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch_clips(tmp_path, *(f"{label}/{number}.wav" for label in "ab" for number in range(3)), "a/notes.txt")
    assert load_dataset(tmp_path, FOLDERS).labels == ("a", "b")
    assert "1 files are no audio that is read" in caplog.text
    touch_clips(tmp_path, "c/1.aiff")
    with pytest.raises(BadDataset, match=r"'c' has no audio, only such as 1\.aiff; read are \.aac"):
        load_dataset(tmp_path, FOLDERS)


def test_values_are_stripped_and_one_class_is_told(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("file,label,split\na.wav,a, train\nb.wav,b ,train\nc.wav,a,val\n")
    assert load_dataset(tmp_path, Source(kind="csv")).labels == ("a", "b")
    (tmp_path / "clips.csv").write_text("file,label,split\na.wav,a, train\nc.wav,a,val\n")
    with pytest.raises(BadDataset, match="two classes or more, got a alone"):
        load_dataset(tmp_path, Source(kind="csv"))
    (tmp_path / "clips.csv").write_text("file;label;split\na.wav;a;train\n")
    with pytest.raises(BadDataset, match="lacks file, label, has 'file;label;split'"):
        load_dataset(tmp_path, Source(kind="csv"))


def test_tables_may_have_tabs(tmp_path: Path) -> None:
    rows = "".join(f"{n}.wav\t{'ab'[n % 2]}\t{['train', 'dev', 'test'][n % 3]}\n" for n in range(12))
    (tmp_path / "clips.tsv").write_text("file\tlabel\tsplit\n" + rows)
    dataset = load_dataset(tmp_path, source({"kind": "csv"}, tables=[{"path": "clips.tsv"}]))
    assert [len(part) for part in names(dataset)] == [4, 4, 4]
