"""Which part a clip goes to where little or nothing tells it."""

from pathlib import Path

import pytest

from service.training.datasets.dataset import BadDataset
from service.training.datasets.load import load_dataset
from service.training.sources import Source
from tests.training.datasets.test_load import FOLDERS, groups, names, source
from tests.training.miniature import write_table


def touch_clips(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize("clips", [3, 5, 10, 100])
def test_folders_are_split_by_shares_of_each_class(tmp_path: Path, clips: int) -> None:
    touch_clips(tmp_path, *(f"{label}/{number}.wav" for label in "ab" for number in range(clips)))
    dataset = load_dataset(tmp_path, FOLDERS)
    for part in names(dataset)[1:]:
        for label in "ab":
            assert 1 <= sum(name.startswith(label) for name in part) <= max(1, clips // 4)
    assert all(clip.group is None for clip in dataset.train)


def test_later_clips_move_none_out_of_training(tmp_path: Path) -> None:
    """The report part stays one that was not trained on when a class grows, whatever the new clips' names are."""
    trained: set[str] = set()
    for clips in range(12, 60, 6):
        touch_clips(tmp_path, *(f"{label}/{(number * 7919) % 1000}.wav" for label in "ab" for number in range(clips)))
        train, selection, report = names(load_dataset(tmp_path, FOLDERS))
        assert not (selection | report) & trained
        trained = train


def test_the_split_is_told_by_what_comes_first(tmp_path: Path) -> None:
    rows = [{"file": f"{n}.wav", "label": "ab"[n % 2], "speaker": f"s{n // 6}"} for n in range(48)]
    write_table(tmp_path / "clips.csv", rows)
    train, selection, report = groups(load_dataset(tmp_path, Source(kind="csv", held_out=3)))
    assert selection == set(sorted(train | selection)[-3:])
    assert len(report) >= 1
    write_table(tmp_path / "more.csv", [{"file": "x.wav", "label": "a", "speaker": "t"}])
    tables = [{"path": "clips.csv"}, {"path": "more.csv", "part": "report"}]
    assert groups(load_dataset(tmp_path, source({"kind": "csv"}, tables=tables, held_out=3)))[2] == {"t"}
    tables = [{"path": "clips.csv"}, {"path": "more.csv", "part": "train"}]
    assert "t" in groups(load_dataset(tmp_path, source({"kind": "csv"}, tables=tables)))[0]
    write_table(tmp_path / "clips.csv", [*rows, {"file": "y.wav", "label": "a", "speaker": ""}])
    with pytest.raises(BadDataset, match=r"held_out counts speakers, and nothing tells that of y\.wav \(1 such"):
        load_dataset(tmp_path, Source(kind="csv", held_out=3))


def test_too_few_clips_are_told(tmp_path: Path) -> None:
    write_table(tmp_path / "clips.csv", [{"file": f"{n}.wav", "label": "a" if n < 4 else "b"} for n in range(6)])
    with pytest.raises(BadDataset, match=r"class 'b' has 2 files, too few for training, selection and report"):
        load_dataset(tmp_path, Source(kind="csv"))


def test_no_split_tears_a_speaker_or_a_file(tmp_path: Path) -> None:
    speakers = [{"file": f"{n}.wav", "label": "ab"[n % 2], "speaker": f"s{n // 6}"} for n in range(30)]
    write_table(tmp_path / "clips.csv", speakers)
    by_speaker = load_dataset(tmp_path, Source(kind="csv"))
    assert sorted(map(len, groups(by_speaker))) == [1, 1, 3]
    assert {who for part in groups(by_speaker) for who in part} == {"s0", "s1", "s2", "s3", "s4"}
    files = [{"file": f"{n // 6}.tsv.wav", "label": "ab"[n % 2], "start": n, "end": n + 1} for n in range(30)]
    write_table(tmp_path / "clips.csv", files)
    dataset = load_dataset(tmp_path, Source(kind="csv"))
    parts = [{clip.span.path for clip in part} for part in (dataset.train, dataset.selection, dataset.report().clips)]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    clip = dataset.train[1].span
    assert clip.end == clip.start + 1.0
