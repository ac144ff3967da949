from pathlib import Path

import pytest

from service.training.datasets.dataset import BadDataset
from service.training.datasets.load import guess_source, load_dataset
from service.training.datasets.trials import selection_trials
from service.training.sources import SpeakerSource
from tests.training.miniature import make_speakers

SOURCE = SpeakerSource(kind="speakers", selection_speakers=2, condition_noise="../noise")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_speakers(tmp_path / "speakers")


def test_held_out_speakers_follow_the_others(root: Path) -> None:
    dataset = load_dataset(root, SOURCE)
    assert {clip.target for clip in dataset.train} == {0, 1, 2, 3}
    assert {clip.target for clip in dataset.selection} == {4, 5}
    assert dataset.reserved == {"0.flac"}
    assert guess_source(root).kind == "speakers"


def test_selection_trials_are_all_pairs(root: Path) -> None:
    trials = selection_trials(load_dataset(root, SOURCE).selection).trials
    assert len(trials) == 45
    assert sum(trial.same for trial in trials) == 20


def test_report_has_every_list_clean_and_noisy(root: Path) -> None:
    lists = load_dataset(root, SOURCE).report().trials
    assert [each.name for each in lists] == ["clean", "hard", "noise15db", "hard_noise15db"]
    assert len(lists[0].trials) == 13
    distortion = lists[2].distortions[lists[2].paths[0]]
    assert (distortion.noise.name, distortion.offset, distortion.snr_db, distortion.eq_a) == ("0.flac", 7, 15.0, 0.2)
    assert distortion.noise.exists()
    assert not lists[0].distortions


def test_trial_lists_stay_closed_before_the_report(root: Path) -> None:
    (root / "veri_test.txt").write_text("2 a b\n")
    dataset = load_dataset(root, SOURCE)
    with pytest.raises(BadDataset, match="0 or 1, got '2'"):
        dataset.report()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("train_list.txt", "one\n", "line 1: expected 'speaker path'"),
        ("train_list.txt", "", "has no lines"),
        ("train_list.txt", "a a/0.flac\nb b/0.flac\n", "2 speakers cannot be held out of 2"),
        ("veri_test.txt", "1 a\n", "expected 'label path1 path2'"),
        ("veri_test.txt", "1 x/0.flac y/0.flac\n", r"noise15db\.csv has no row for"),
        ("noise15db.csv", "path,noise_file\n", "lacks noise_offset"),
    ],
)
def test_refuses(root: Path, name: str, text: str, said: str) -> None:
    (root / name).write_text(text)
    with pytest.raises(BadDataset, match=said):
        load_dataset(root, SOURCE).report()


def test_a_number_that_is_none_is_named(root: Path) -> None:
    path = root / "noise15db.csv"
    path.write_text(path.read_text().replace("15.0", "loud"))
    with pytest.raises(BadDataset, match="loud"):
        load_dataset(root, SOURCE).report()
