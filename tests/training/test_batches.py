from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.audio.features import FILTER_BANK, PLAIN_SAMPLES, Features, InputSpec
from service.training import augment
from service.training.batches import Batches, Pick
from service.training.cache import ArrayCache
from service.training.datasets.dataset import Clip, Span
from service.training.recipe import Augmentation
from service.training.recordings import Recordings
from tests.training.miniature import write_clip

SPEC = InputSpec(90, short="repeat")  # as long as the longest clip


@pytest.fixture
def from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of long clips are their first, as in serving, so that what else is changed can be seen."""
    monkeypatch.setattr(augment, "crop", lambda samples, length, rng: samples[:length])


@pytest.fixture
def clips(tmp_path: Path) -> tuple[Clip, ...]:
    paths = [tmp_path / f"{index}.flac" for index in range(7)]
    for index, path in enumerate(paths):
        write_clip(path, 300 + 100 * index, seconds=0.3 + 0.1 * index)
    return tuple(Clip(Span(path), index, "") for index, path in enumerate(paths))


def batches(clips: tuple[Clip, ...], recipe: Augmentation, *, features: Features = PLAIN_SAMPLES) -> Batches:
    return Batches(clips, Recordings(), recipe, (), SPEC, features, size=3, seed=1)


def test_an_epoch_sees_every_clip_once_in_its_own_order(clips: tuple[Clip, ...]) -> None:
    training = batches(clips, Augmentation())
    epochs = [[pick.clip for step in training.epoch(number) for pick in step] for number in (1, 2)]
    assert len(training) == 2  # a batch of one clip is left out
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[0] == [pick.clip for step in training.epoch(1) for pick in step]


def test_some_examples_are_noise_alone(clips: tuple[Clip, ...], tmp_path: Path) -> None:
    for cache in (None, ArrayCache(tmp_path / "cache"), ArrayCache(tmp_path / "cache")):
        training = replace(batches(clips, Augmentation(background=0.4, views=20)), background=9, cache=cache)
        wanted = [training.example(Pick(clip, draw))[1] for clip in range(7) for draw in range(20)]
        alone = [one for one in wanted if one.targets == (9,)]
        assert 35 <= len(alone) <= 77
        assert {one.share for one in alone} == {1.0}
        assert {one.targets for one in wanted} == {(clip,) for clip in (*range(7), 9)}


def test_views_come_round_again(clips: tuple[Clip, ...]) -> None:
    training = batches(clips, Augmentation(views=2))
    draws = [{pick.draw for step in training.epoch(number) for pick in step} for number in (1, 2, 3)]
    assert draws == [{0}, {1}, {0}]


def test_an_example_depends_on_clip_and_draw_only(clips: tuple[Clip, ...]) -> None:
    training = batches(clips, Augmentation(gain=6, speed=0.1, noise=0.5, mixup=0.5))
    pick, other = next(iter(training.epoch(1)))[:2]
    first, wanted = training.example(pick)
    training.example(other)
    again, wanted_again = training.example(pick)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert wanted == wanted_again
    assert not torch.equal(first, training.example(replace(pick, draw=9))[0])


@pytest.mark.parametrize("features", [PLAIN_SAMPLES, FILTER_BANK])
@pytest.mark.usefixtures("from_the_beginning")
def test_without_augmentation_inputs_are_the_servers(clips: tuple[Clip, ...], features: Features) -> None:
    training = batches(clips, Augmentation(), features=features)
    for pick in next(iter(training.epoch(1))):
        samples = torch.from_numpy(training.recordings.samples(clips[pick.clip].span))
        inputs, wanted = training.example(pick)
        # The filter bank takes the clip's mean off, here that of the window alone: equal but for rounding.
        expected = features.windows(samples, SPEC).inputs[0]
        torch.testing.assert_close(inputs, expected, rtol=0, atol=1e-3 * (features is FILTER_BANK))
        assert (wanted.targets, wanted.share) == ((pick.clip,), 1.0)


@pytest.mark.usefixtures("from_the_beginning")
def test_spectrogram_augmentation_hides_some_of_it(clips: tuple[Clip, ...]) -> None:
    recipe = Augmentation(time_mask=30, frequency_mask=60, input_noise=True)
    pick = next(iter(batches(clips, recipe, features=FILTER_BANK).epoch(1)))[0]
    plain, _ = batches(clips, Augmentation(), features=FILTER_BANK).example(pick)
    changed, _ = batches(clips, recipe, features=FILTER_BANK).example(pick)
    assert changed.shape == plain.shape
    assert not torch.equal(changed, plain)


def test_mixup_is_a_chance(clips: tuple[Clip, ...]) -> None:
    training = batches(clips, Augmentation(mixup=0.3))
    wanted = [training.example(Pick(clip, draw))[1] for draw in range(60) for clip in range(7)]
    assert sum(each.share < 1 for each in wanted) / len(wanted) == pytest.approx(0.3, abs=0.07)


@pytest.mark.usefixtures("from_the_beginning")
def test_a_mixture_is_the_shares_of_its_clips(clips: tuple[Clip, ...]) -> None:
    """Clips are chords of their own: what of them is in the mixture says whose share is whose."""
    training = replace(batches(clips, Augmentation(mixup=1.0)), input=InputSpec(90, short="zeros"))
    plain = replace(training, augmentation=Augmentation())
    shares = []
    for draw in range(12):
        mixed, wanted = training.example(Pick(6, draw))
        (own,), (other,) = wanted.targets, wanted.partners
        assert own == 6
        if other != own:
            alone = [plain.example(Pick(clip, 0))[0].double() for clip in (own, other)]
            found = torch.linalg.lstsq(torch.stack(alone, dim=1), mixed.double()[:, None]).solution.flatten().tolist()
            assert found == pytest.approx([wanted.share, 1 - wanted.share], abs=0.05)
            shares.append(wanted.share)
    assert max(shares) > 0.55
    assert min(shares) < 0.45  # so that a swap would be seen


def test_every_class_comes_equally_often_where_that_is_asked_for(clips: tuple[Clip, ...]) -> None:
    rare = tuple(replace(clip, target=int(index == 0)) for index, clip in enumerate(clips))
    training = replace(batches(rare, Augmentation()), balanced=True)
    epochs = [[pick for step in training.epoch(number) for pick in step] for number in range(1, 101)]
    share = sum(pick.clip == 0 for epoch in epochs for pick in epoch) / 600
    assert share == pytest.approx(0.5, abs=0.07)
    assert all(len(set(epoch)) == len(epoch) == 6 for epoch in epochs)  # one clip again is another draw of it


@pytest.mark.usefixtures("from_the_beginning")
def test_specaugment_hides_with_zeros_before_normalisation(clips: tuple[Clip, ...]) -> None:
    recipe = Augmentation(time_mask=40, frequency_mask=100)
    training = replace(batches(clips, recipe, features=FILTER_BANK), input=replace(SPEC, mean=-7.0, std=4.0))
    plain = replace(training, augmentation=Augmentation())
    hidden = 0
    for draw in range(10):
        changed, before = training.example(Pick(0, draw))[0], plain.example(Pick(0, draw))[0]
        differs = changed != before
        hidden += int(differs.sum())
        torch.testing.assert_close(changed[differs], torch.full_like(changed[differs], 7.0 / (2 * 4.0)))
    assert hidden > 0
