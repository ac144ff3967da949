"""Which clip lands in which part, of tables, patterns and the public sets in miniature, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from service.training.datasets.dataset import BadDataset, Dataset, multi_hot
from service.training.datasets.load import check_classes, guess_source, load_dataset
from service.training.datasets.trials import selection_trials
from service.training.folds import fold_recipes
from service.training.recipe import read_recipe
from service.training.shipped import find_recipe
from service.training.sources import Source
from tests.training.miniature import (
    DIGITS,
    ESC,
    KEYWORDS,
    SPEAKERS,
    make_classes,
    make_digits,
    make_esc,
    make_fsd50k,
    make_gtzan,
    make_keywords,
    make_speakers,
    make_speech_commands,
    make_table,
    make_voxceleb,
    write_clip,
    write_table,
)

FOLDERS = Source(kind="folders")
FILTERED = {"train": "train_filtered.txt", "selection": "valid_filtered.txt", "report": "test_filtered.txt"}


def source(table: dict[str, Any], **changes: Any) -> Source:
    return Source.model_validate(table | changes)


def public(name: str, **changes: Any) -> Source:
    """The `[data]` table of a recipe of the paper, changed."""
    return read_recipe(find_recipe(name)).data.model_copy(update=changes)


def names(dataset: Dataset) -> tuple[set[str], set[str], set[str]]:
    parts = (dataset.train, dataset.selection, dataset.report().clips)
    train, selection, report = ({str(clip.span.path.relative_to(dataset.root)) for clip in part} for part in parts)
    assert len(train | selection | report) == len(train) + len(selection) + len(report)
    return train, selection, report


def groups(dataset: Dataset) -> list[set[str]]:
    return [{clip.group for clip in part} for part in (dataset.train, dataset.selection, dataset.report().clips)]


def test_esc_is_split_by_its_folds(tmp_path: Path) -> None:
    dataset = load_dataset(make_esc(tmp_path, clips=1), source(ESC, group="fold"))
    assert dataset.labels == ("dog", "rain", "rooster")
    assert groups(dataset) == [{"1", "2"}, {"3"}, {"4"}]
    assert all(clip.span.path.exists() for clip in dataset.train + dataset.selection)


def test_keywords_hold_out_the_last_speakers(tmp_path: Path) -> None:
    dataset = load_dataset(make_keywords(tmp_path), source(KEYWORDS, held_out=2))
    assert dataset.labels == ("up", "zero", "zoom in")
    assert dataset.grouped_by == "speaker"
    assert groups(dataset) == [{"00000000", "00000001"}, {"00000002", "00000003"}, {"00000090", "00000091"}]


def test_the_report_list_stays_closed(tmp_path: Path) -> None:
    root = make_keywords(tmp_path)
    (root / "val.csv").write_bytes(b"\xff\xfepoison")
    dataset = load_dataset(root, source(KEYWORDS))
    with pytest.raises(BadDataset, match=r"val\.csv is not text"):
        dataset.report()
    write_table(root / "val.csv", [{"file": "dataset/up/00000091_NO_00.flac", "class": "down"}])
    with pytest.raises(BadDataset, match="label 'down' is not one of the training split's"):
        load_dataset(root, source(KEYWORDS)).report()


def test_digits_split_by_speaker(tmp_path: Path) -> None:
    dataset = load_dataset(make_digits(tmp_path), source(DIGITS))
    assert dataset.labels == ("0", "1", "2")
    assert groups(dataset) == [{"bob", "cid"}, {"dan"}, {"ann"}]


def test_gtzan_is_split_by_the_last_digit(tmp_path: Path) -> None:
    dataset = load_dataset(make_gtzan(tmp_path), public("gtzan-ast"))
    assert dataset.labels == ("blues", "jazz", "rock")
    train, selection, report = names(dataset)
    assert len(train) == 24
    assert selection == {f"genres/{genre}/{genre}.00008.wav" for genre in dataset.labels}
    assert report == {f"genres/{genre}/{genre}.00009.wav" for genre in dataset.labels}
    folds = fold_recipes(read_recipe(find_recipe("gtzan-ast")))
    reports = [names(load_dataset(tmp_path, each.data))[2] for each in folds.values()]
    assert len(folds) == len({name for report in reports for name in report}) / 3 == 10


def test_lists_name_parts(tmp_path: Path) -> None:
    root = make_gtzan(tmp_path)
    (root / FILTERED["report"]).rename(root / "later.txt")
    dataset = load_dataset(root, public("gtzan-ast", parts={}, lists=FILTERED))  # the report's is opened at the end
    (root / "later.txt").rename(root / FILTERED["report"])
    assert [len(part) for part in names(dataset)] == [18, 6, 6]
    (root / FILTERED["selection"]).write_text("polka/polka.00001.wav\n")
    with pytest.raises(BadDataset, match=r"valid_filtered\.txt: none of the 1 names, such as polka"):
        load_dataset(root, public("gtzan-ast", parts={}, lists=FILTERED))


def test_speech_commands_have_official_lists(tmp_path: Path) -> None:
    dataset = load_dataset(make_speech_commands(tmp_path), public("speech-commands-ast"))
    assert dataset.labels == ("go", "stop", "yes")
    train, selection, report = names(dataset)
    assert groups(dataset)[0] == {f"{speaker:08x}" for speaker in range(4)}
    assert (len(train), len(selection), len(report)) == (12, 3, 3)
    assert all(name.endswith("/00000004_nohash_0.wav") for name in selection)
    some = load_dataset(tmp_path, public("speech-commands-ast", labels=("stop", "go")))
    assert some.labels == ("stop", "go")
    assert [len(part) for part in names(some)] == [8, 2, 2]
    with pytest.raises(BadDataset, match="no training clip is labelled left"):
        load_dataset(tmp_path, public("speech-commands-ast", labels=("go", "left")))


def test_fsd50k_clips_have_several_labels(tmp_path: Path) -> None:
    root = make_fsd50k(tmp_path)
    dataset = load_dataset(root, public("fsd50k-ast"))
    assert dataset.multi_label
    assert dataset.labels == ("Bark", "Rain", "Siren")
    assert [len(part) for part in names(dataset)] == [20, 5, 5]
    assert sorted({clip.targets for clip in dataset.train}) == [(0,), (0, 1), (1,), (1, 2), (2,)]
    assert multi_hot(dataset.train, 3).sum(axis=0).tolist() == [8, 12, 8]
    assert all(clip.span.path.exists() for clip in (*dataset.train, *dataset.report().clips))
    table = root / "FSD50K.ground_truth" / "dev.csv"
    table.write_text(table.read_text() + "99,Cough,/m/0,val\n")
    with pytest.raises(BadDataset, match="label 'Cough' is not one of the training split's"):
        load_dataset(root, public("fsd50k-ast"))


def test_voxceleb_trains_on_no_speaker_of_the_trials(tmp_path: Path) -> None:
    table = public("voxceleb1-ast", held_out=2, selection_clips=2)
    dataset = load_dataset(make_voxceleb(tmp_path), table)
    assert dataset.verification
    assert [clip.group for clip in dataset.train] == [f"id{10001 + speaker}" for speaker in range(3) for _ in range(4)]
    assert {clip.target for clip in dataset.selection} == {3, 4}
    # Two of four clips in two folders, spread evenly: both folders are heard.
    assert [clip.span.path.parent.name for clip in dataset.selection] == ["video0", "video1"] * 2
    (trials,) = dataset.report().trials
    assert len(trials.trials) == 10
    assert all(span.path.exists() for span in trials.spans)
    assert not {span.path.parts[-3] for span in trials.spans} & set(dataset.labels)
    for number in range(7):  # unpacked in two places
        folder = tmp_path / ("dev" if number < 5 else "test") / "wav"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "wav" / f"id{10001 + number}").rename(folder / f"id{10001 + number}")
    apart = load_dataset(tmp_path, table)
    assert apart.labels == dataset.labels
    assert all(span.path.exists() for span in apart.report().trials[0].spans)


def test_folders_are_split_by_folders(tmp_path: Path) -> None:
    for part, clips in (("train", 3), ("val", 2), ("test", 1)):
        make_classes(tmp_path / part, clips)
    dataset = load_dataset(tmp_path, FOLDERS)
    assert dataset.labels == ("blues", "jazz", "rock")
    assert [len(part) for part in names(dataset)] == [9, 6, 3]
    write_clip(tmp_path / "val" / "polka" / "a.wav", 300)
    with pytest.raises(BadDataset, match="label 'polka'"):
        load_dataset(tmp_path, FOLDERS)


def test_folders_without_classes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadDataset, match="a folder per class"):
        load_dataset(tmp_path, FOLDERS)


def test_a_table_of_your_own(tmp_path: Path) -> None:
    dataset = load_dataset(make_table(tmp_path), Source(kind="csv"))
    assert dataset.labels == ("high", "low")
    assert [len(part) for part in names(dataset)] == [8, 2, 2]
    several = load_dataset(make_table(tmp_path, separator=";"), Source(kind="csv", separator=";"))
    assert several.multi_label
    assert {clip.targets for clip in several.train} == {(0,), (1,), (0, 1)}


def test_a_table_of_speakers(tmp_path: Path) -> None:
    rows = [
        {"file": f"{who}-{take}.wav", "label": who, "split": "train" if who < "c" else "val"}
        for who in "abcd"
        for take in range(2)
    ]
    write_table(tmp_path / "clips.csv", rows)
    (tmp_path / "trials.txt").write_text("1 e-0.wav e-1.wav\n0 e-0.wav f-0.wav\n")
    table = Source(kind="csv", trials={"clean": "trials.txt"})
    dataset = load_dataset(tmp_path, table)
    assert dataset.labels == ("a", "b", "c", "d")
    assert {clip.target for clip in dataset.selection} == {2, 3}
    assert [trial.same for trial in dataset.report().trials[0].trials] == [True, False]
    write_table(tmp_path / "clips.csv", [*rows, {"file": "x.wav", "label": "a", "split": "val"}])
    with pytest.raises(BadDataset, match="speaker 'a' is in train and in selection"):
        load_dataset(tmp_path, table)


@pytest.mark.parametrize(
    ("text", "changes", "said"),
    [
        ("file,label,split\na.wav,a,dev2\n", {}, "split is one of train, training, selection"),
        ("file,split\na.wav,train\n", {}, "lacks label"),
        ("file,label\n", {}, "has no rows"),
        ("file,label\na.wav,\n", {}, "line 2"),
        ("file,label,start,end\na.wav,a,2,1\n", {}, r"line 2: a clip from 2 to 1\.0 s is none"),
        ("file,label,start,end\na.wav,a,x,1\n", {}, "line 2: start and end are seconds"),
        ("file,label,split\na.wav,a,train\nb.wav,a,\n", {}, r"1 clips have no split, such as b\.wav"),
        (
            "file,label,split\na.wav,a,1\n",
            {"parts": {"train": ["1"], "report": ["7"]}},
            "has split 7; there are 1",
        ),
        ("file,label\na.wav,a\n", {"pattern": "(?P<speaker>x)_"}, r"line 2: 'a\.wav' does not match pattern"),
        (
            "file,label,speaker,split\na.wav,a,s,train\nb.wav,b,s,train\n",
            {"held_out": 3},
            "3 speakers cannot be held out of 1",
        ),
        ("file,label,split\na.wav,a,test\n", {}, "the training part has no clips"),
    ],
)
def test_refuses_tables(tmp_path: Path, text: str, changes: dict[str, Any], said: str) -> None:
    (tmp_path / "clips.csv").write_text(text)
    with pytest.raises(BadDataset, match=said):
        load_dataset(tmp_path, source({"kind": "csv"}, **changes))


def test_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="does not exist"):
        load_dataset(tmp_path / "nothing", source(ESC))
    with pytest.raises(BadDataset, match=r"esc50\.csv cannot be read"):
        load_dataset(tmp_path, source(ESC))


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    dataset = load_dataset(make_esc(tmp_path, clips=1), source(ESC))
    readable = tuple(clip for clip in dataset.train if dataset.labels[clip.target] != "rain")
    with pytest.raises(BadDataset, match="no readable training clip of rain"):
        check_classes(dataset, readable, dataset.selection)
    with pytest.raises(BadDataset, match="selection part"):
        check_classes(dataset, dataset.train, ())


def test_a_folder_is_guessed(tmp_path: Path) -> None:
    assert guess_source(tmp_path).kind == "folders"
    (tmp_path / "clips.csv").touch()
    assert guess_source(tmp_path).kind == "csv"


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    return make_speakers(tmp_path / "speakers")


def test_held_out_speakers_follow_the_others(voices: Path) -> None:
    dataset = load_dataset(voices, source(SPEAKERS))
    assert {clip.target for clip in dataset.train} == {0, 1, 2, 3}
    assert {clip.target for clip in dataset.selection} == {4, 5}
    assert dataset.reserved == {"0.flac"}
    trials = selection_trials(dataset.selection).trials
    assert (len(trials), sum(trial.same for trial in trials)) == (45, 20)


def test_report_has_every_list_clean_and_noisy(voices: Path) -> None:
    lists = load_dataset(voices, source(SPEAKERS)).report().trials
    assert [each.name for each in lists] == ["clean", "hard", "noise15db", "hard_noise15db"]
    assert len(lists[0].trials) == 13
    distortion = lists[2].distortions[lists[2].spans[0]]
    told = (distortion.noise.path.name, distortion.offset, distortion.snr_db, distortion.eq_a)
    assert told == ("0.flac", 7, 15.0, 0.2)
    assert distortion.noise.path.exists()
    assert not lists[0].distortions


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("train.csv", "path,speaker\nS000/0.flac,S000\n", "2 speakers cannot be held out of 1"),
        ("veri_test.txt", "1 a\n", "expected 'label path1 path2'"),
        ("veri_test.txt", "2 a b\n", "0 or 1, got '2'"),
        ("veri_test.txt", "1 x/0.flac y/0.flac\n", r"noise15db\.csv has no row for"),
        ("veri_test_hard.txt", "", "has no lines"),
        ("noise15db.csv", "path,noise_file\n", "lacks noise_offset"),
    ],
)
def test_refuses_lists(voices: Path, name: str, text: str, said: str) -> None:
    (voices / name).write_text(text)
    with pytest.raises(BadDataset, match=said):
        load_dataset(voices, source(SPEAKERS)).report()


def test_a_number_that_is_none_is_named(voices: Path) -> None:
    path = voices / "noise15db.csv"
    path.write_text(path.read_text().replace("15.0", "loud"))
    with pytest.raises(BadDataset, match="loud"):
        load_dataset(voices, source(SPEAKERS)).report()
