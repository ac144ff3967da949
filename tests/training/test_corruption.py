from pathlib import Path

import numpy as np
import pytest

from service.training.augment import Samples, reverberated
from service.training.corruption import Corruption, babbled, find_corruption
from service.training.datasets.dataset import BadDataset
from service.training.recipe import Augmentation
from tests.training.miniature import chord, write_clip

CLIP = chord(300, 1.0, seed=0)
NOISE = chord(77, 3.0, seed=9)


def ratio(noisy: Samples) -> float:
    return float(10 * np.log10(np.mean(CLIP**2) / np.mean((noisy - CLIP) ** 2)))


def corrupted(kind: str, seed: int, chance: float = 1.0) -> Samples:
    corruption = Corruption({kind: (Path("a"),)}, chance)  # type: ignore[dict-item]
    return corruption(CLIP, np.random.default_rng(seed), lambda path: NOISE)


@pytest.mark.parametrize(("kind", "low", "high"), [("noise", 0, 15), ("music", 5, 15)])
def test_ratios_are_drawn_from_their_range(kind: str, low: float, high: float) -> None:
    ratios = [ratio(corrupted(kind, seed)) for seed in range(60)]
    assert low <= min(ratios) < low + 2
    assert high - 2 < max(ratios) <= high + 0.01


def test_babble_is_three_to_seven_voices() -> None:
    voice = np.random.default_rng(3).standard_normal(16_000).astype(np.float32)
    one = ratio(babbled(CLIP, [voice], np.random.default_rng(0)))
    assert 13 <= one <= 20
    counts: set[int] = set()
    for seed in range(40):
        read: list[Path] = []
        corruption = Corruption({"babble": (Path("a"),)}, 1.0)
        corruption(CLIP, np.random.default_rng(seed), lambda path, read=read: (read.append(path), voice)[1])  # type: ignore[misc]
        counts.add(len(read))
    assert counts == {3, 4, 5, 6, 7}


def test_a_room_is_a_convolution() -> None:
    response = np.array([0.0, 3.0, 0.0, 4.0], np.float32)
    expected = np.convolve(CLIP, response / 5.0)[: len(CLIP)]
    np.testing.assert_allclose(reverberated(CLIP, response), expected, atol=1e-5)
    np.testing.assert_array_equal(reverberated(CLIP, np.zeros(4, np.float32)), CLIP)


def test_chance_leaves_clips_alone() -> None:
    changed = [not np.array_equal(corrupted("noise", seed, chance=0.8), CLIP) for seed in range(300)]
    assert 0.72 < np.mean(changed) < 0.88


def test_folders_are_found_beside_the_data(tmp_path: Path) -> None:
    for folder in ("noise/free-sound", "music/fma", "speech/librivox"):
        write_clip(tmp_path / "musan" / folder / "a.wav", 100)
    write_clip(tmp_path / "rirs" / "room1" / "a.wav", 100)
    recipe = Augmentation(musan="../musan", rirs="../rirs")
    (tmp_path / "data").mkdir()
    found = find_corruption(tmp_path / "data", recipe)
    assert found is not None
    assert sorted(found.files) == ["babble", "music", "noise", "room"]
    assert find_corruption(tmp_path / "data", Augmentation()) is None
    with pytest.raises(BadDataset, match=r"augment\.rirs: no audio in"):
        find_corruption(tmp_path / "data", Augmentation(rirs="../nothing"))
