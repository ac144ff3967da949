"""Public layouts, in miniature: which clip lands in which part, and what is refused."""

from pathlib import Path

import pytest

from service.training.datasets.dataset import BadDataset, Dataset, multi_hot
from service.training.datasets.load import load_dataset
from service.training.sources import (
    FolderSource,
    Fsd50kSource,
    GtzanSource,
    SpeechCommandsSource,
    TableSource,
    VoxCelebSource,
)
from tests.training.miniature import (
    make_classes,
    make_fsd50k,
    make_gtzan,
    make_speech_commands,
    make_table,
    make_voxceleb,
    write_clip,
    write_table,
)

FILTERED = ("train_filtered.txt", "valid_filtered.txt", "test_filtered.txt")


def names(dataset: Dataset) -> tuple[set[str], set[str], set[str]]:
    parts = (dataset.train, dataset.selection, dataset.report().clips)
    train, selection, report = ({str(clip.path.relative_to(dataset.root)) for clip in part} for part in parts)
    assert len(train | selection | report) == len(train) + len(selection) + len(report)
    return train, selection, report


def test_gtzan_is_split_by_the_last_digit(tmp_path: Path) -> None:
    dataset = load_dataset(make_gtzan(tmp_path), GtzanSource(kind="gtzan"))
    assert dataset.labels == ("blues", "jazz", "rock")
    train, selection, report = names(dataset)
    assert len(train) == 24
    assert selection == {f"genres/{genre}/{genre}.00008.wav" for genre in dataset.labels}
    assert report == {f"genres/{genre}/{genre}.00009.wav" for genre in dataset.labels}


def test_gtzan_has_filtered_lists(tmp_path: Path) -> None:
    root = make_gtzan(tmp_path)
    (root / FILTERED[0]).write_text((root / FILTERED[0]).read_text() + "rock/rock.00099.wav\n")
    dataset = load_dataset(root, GtzanSource(kind="gtzan", lists=FILTERED))
    assert [len(part) for part in names(dataset)] == [19, 6, 6]
    assert [clip.path.name for clip in dataset.train if not clip.path.exists()] == ["rock.00099.wav"]
    (root / FILTERED[1]).write_text("polka/polka.00001.wav\n")
    with pytest.raises(BadDataset, match="label 'polka'"):
        load_dataset(root, GtzanSource(kind="gtzan", lists=FILTERED))


def test_gtzan_wants_its_names(tmp_path: Path) -> None:
    root = make_gtzan(tmp_path, clips=1)
    write_clip(root / "genres" / "jazz" / "take five.wav", 300)
    with pytest.raises(BadDataset, match=r"blues\.00012\.wav"):
        load_dataset(root, GtzanSource(kind="gtzan"))


def test_speech_commands_have_official_lists(tmp_path: Path) -> None:
    dataset = load_dataset(make_speech_commands(tmp_path), SpeechCommandsSource(kind="speech-commands"))
    assert dataset.labels == ("go", "stop", "yes")
    train, selection, report = names(dataset)
    assert {clip.group for clip in dataset.train} == {f"{speaker:08x}" for speaker in range(4)}
    assert (len(train), len(selection), len(report)) == (12, 3, 3)
    assert all(name.endswith("/00000004_nohash_0.wav") for name in selection)


def test_speech_commands_of_some_words_and_with_a_training_list(tmp_path: Path) -> None:
    root = make_speech_commands(tmp_path)
    (root / "training_list.txt").write_text("go/00000000_nohash_0.wav\nstop/00000001_nohash_0.wav\n")
    source = SpeechCommandsSource(kind="speech-commands", words=("stop", "go"))
    (root / "testing_list.txt").unlink()
    dataset = load_dataset(root, source)
    assert [clip.target for clip in dataset.train] == [1, 0]
    assert len(dataset.selection) == 2
    with pytest.raises(BadDataset, match=r"testing_list\.txt cannot be read"):
        dataset.report()
    with pytest.raises(BadDataset, match="lacks left"):
        load_dataset(root, SpeechCommandsSource(kind="speech-commands", words=("go", "left")))


def test_fsd50k_clips_have_several_labels(tmp_path: Path) -> None:
    dataset = load_dataset(make_fsd50k(tmp_path), Fsd50kSource(kind="fsd50k"))
    assert dataset.multi_label
    assert dataset.labels == ("Bark", "Rain", "Siren")
    assert [len(part) for part in names(dataset)] == [20, 5, 5]
    assert sorted({clip.targets for clip in dataset.train}) == [(0,), (0, 1), (1,), (1, 2), (2,)]
    assert multi_hot(dataset.train, 3).sum(axis=0).tolist() == [8, 12, 8]
    assert all(clip.path.exists() for clip in (*dataset.train, *dataset.report().clips))


def test_fsd50k_refuses_labels_that_training_lacks(tmp_path: Path) -> None:
    root = make_fsd50k(tmp_path, clips=1)
    table = root / "FSD50K.ground_truth" / "dev.csv"
    table.write_text(table.read_text() + "99,Cough,/m/0,val\n")
    with pytest.raises(BadDataset, match="label 'Cough' is not one of the training split's"):
        load_dataset(root, Fsd50kSource(kind="fsd50k"))


def test_voxceleb_trains_on_no_speaker_of_the_trials(tmp_path: Path) -> None:
    source = VoxCelebSource(kind="voxceleb", selection_speakers=2, selection_clips=3)
    dataset = load_dataset(make_voxceleb(tmp_path), source)
    assert dataset.verification
    assert [clip.group for clip in dataset.train] == [f"id{10001 + speaker}" for speaker in range(3) for _ in range(4)]
    assert {clip.target for clip in dataset.selection} == {3, 4}
    assert len(dataset.selection) == 6
    (trials,) = dataset.report().trials
    assert len(trials.trials) == 10
    assert all(path.exists() for path in trials.paths)
    heard = {path.parts[-3] for path in trials.paths}
    assert not heard & set(dataset.labels)


def test_voxceleb_unpacked_in_two_places(tmp_path: Path) -> None:
    root = make_voxceleb(tmp_path)
    for number in range(7):
        folder = "dev" if number < 5 else "test"
        (root / folder / "wav").mkdir(parents=True, exist_ok=True)
        (root / "wav" / f"id{10001 + number}").rename(root / folder / "wav" / f"id{10001 + number}")
    (root / "wav").rmdir()
    dataset = load_dataset(root, VoxCelebSource(kind="voxceleb", selection_speakers=2))
    assert len(dataset.labels) == 5
    assert all(path.exists() for path in dataset.report().trials[0].paths)


def test_folders_are_split_by_position(tmp_path: Path) -> None:
    dataset = load_dataset(make_classes(tmp_path), FolderSource(kind="folders"))
    assert dataset.labels == ("blues", "jazz", "rock")
    assert [len(part) for part in names(dataset)] == [24, 3, 3]


def test_folders_are_split_by_folders(tmp_path: Path) -> None:
    for part, clips in (("train", 3), ("val", 2), ("test", 1)):
        make_classes(tmp_path / part, clips)
    dataset = load_dataset(tmp_path, FolderSource(kind="folders"))
    assert [len(part) for part in names(dataset)] == [9, 6, 3]
    write_clip(tmp_path / "val" / "polka" / "a.wav", 300)
    with pytest.raises(BadDataset, match="label 'polka'"):
        load_dataset(tmp_path, FolderSource(kind="folders"))


def test_folders_without_classes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadDataset, match="a folder per class"):
        load_dataset(tmp_path, FolderSource(kind="folders"))


def test_a_table_of_your_own(tmp_path: Path) -> None:
    dataset = load_dataset(make_table(tmp_path), TableSource(kind="csv"))
    assert dataset.labels == ("high", "low")
    assert [len(part) for part in names(dataset)] == [8, 2, 2]
    assert not dataset.multi_label


def test_a_table_with_several_labels(tmp_path: Path) -> None:
    dataset = load_dataset(make_table(tmp_path, separator=";"), TableSource(kind="csv", separator=";"))
    assert dataset.multi_label
    assert {clip.targets for clip in dataset.train} == {(0,), (1,), (0, 1)}


def test_a_table_of_speakers(tmp_path: Path) -> None:
    rows = [
        {"path": f"{who}-{take}.wav", "label": who, "split": "train" if who < "c" else "val"}
        for who in "abcd"
        for take in range(2)
    ]
    write_table(tmp_path / "clips.csv", rows)
    (tmp_path / "trials.txt").write_text("1 e-0.wav e-1.wav\n0 e-0.wav f-0.wav\n")
    source = TableSource(kind="csv", trials={"clean": "trials.txt"})
    dataset = load_dataset(tmp_path, source)
    assert dataset.labels == ("a", "b", "c", "d")
    assert {clip.target for clip in dataset.selection} == {2, 3}
    assert [trial.same for trial in dataset.report().trials[0].trials] == [True, False]
    write_table(tmp_path / "clips.csv", [*rows, {"path": "x.wav", "label": "a", "split": "val"}])
    with pytest.raises(BadDataset, match="speaker 'a' is in train and in selection"):
        load_dataset(tmp_path, source)


def test_a_table_names_its_splits(tmp_path: Path) -> None:
    write_table(tmp_path / "clips.csv", [{"path": "a.wav", "label": "a", "split": "dev"}])
    with pytest.raises(BadDataset, match="split is one of train, selection"):
        load_dataset(tmp_path, TableSource(kind="csv"))
