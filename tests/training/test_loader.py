from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.audio.features import PLAIN_SAMPLES, InputSpec
from service.training.batches import Batches, Made
from service.training.cache import ArrayCache
from service.training.datasets.dataset import Clip, Span
from service.training.loader import Loader, default_workers
from service.training.recipe import Augmentation
from service.training.recordings import Recordings
from tests.training.miniature import write_clip


@pytest.fixture
def batches(tmp_path: Path) -> Batches:
    paths = [tmp_path / f"{index}.flac" for index in range(8)]
    for index, path in enumerate(paths):
        write_clip(path, 300 + 100 * index, seconds=0.5)
    clips = tuple(Clip(Span(path), index, "") for index, path in enumerate(paths))
    recipe = Augmentation(gain=6, noise=0.5, mixup=0.5, speed=0.1)
    return Batches(clips, Recordings(), recipe, (), InputSpec(50, short="repeat"), PLAIN_SAMPLES, size=3, seed=1)


def made(batches: Batches, workers: int) -> list[Made]:
    return list(Loader(batches, workers)(list(batches.epoch(1))))


def same(first: list[Made], second: list[Made]) -> bool:
    return all(
        torch.equal(a.inputs, b.inputs) and (a.picks, a.wanted) == (b.picks, b.wanted)
        for a, b in zip(first, second, strict=True)
    )


def test_workers_change_nothing(batches: Batches) -> None:
    alone = made(batches, workers=0)
    assert same(alone, made(batches, workers=2))
    assert [len(each.picks) for each in alone] == [3, 3, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_is_left_out_and_named(batches: Batches, workers: int) -> None:
    (gone, *_), *_ = batches.epoch(1)
    span = batches.clips[gone.clip].span
    span.path.unlink()
    plain = replace(batches, augmentation=Augmentation())
    steps = made(plain, workers)
    assert [len(each.picks) for each in steps] == [2, 3, 2]
    assert set(batches.recordings.faults) == {span}
    assert "No such file" in batches.recordings.faults[span]


def test_cached_features_are_the_same(batches: Batches, tmp_path: Path) -> None:
    viewed = replace(batches, augmentation=batches.augmentation.model_copy(update={"views": 2}))
    cached = replace(viewed, cache=ArrayCache(tmp_path / "cache"))
    expected = made(viewed, 0)
    assert same(made(cached, 0), expected)
    files = sorted((tmp_path / "cache").rglob("*.npz"))
    assert len(files) == 8
    files[0].write_bytes(b"damaged")
    again = replace(cached, recordings=Recordings())
    assert same(made(again, 0), expected)
    other = replace(cached, seed=2)
    assert not same(made(other, 0), made(cached, 0))


def test_cached_recordings_are_the_same(batches: Batches, tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path / "cache")
    span = batches.clips[0].span
    plain = batches.recordings.samples(span)
    for _ in range(2):
        assert (Recordings(cache=cache).samples(span) == plain).all()
    write_clip(span.path, 999, seconds=0.4)  # another recording in its place
    assert len(Recordings(cache=cache).samples(span)) != len(plain)


def test_default_leaves_a_core_to_train() -> None:
    assert 0 <= default_workers() <= 8
