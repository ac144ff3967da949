from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from service.training.augment import MIXES, Corruption, Samples, find_corruption, reverberated
from service.training.datasets.dataset import BadDataset, Span
from service.training.recipe import Augmentation
from tests.training.miniature import chord, write_clip

CLIP = chord(300, 1.0, seed=0)
NOISE = chord(77, 3.0, seed=9)


def ratio(noisy: Samples) -> float:
    return float(10 * np.log10(np.mean(CLIP**2) / np.mean((noisy - CLIP) ** 2)))


def corrupted(kind: str, seed: int) -> Samples:
    corruption = Corruption({kind: (Span(Path("a")),)})  # type: ignore[dict-item]
    return corruption(CLIP, np.random.default_rng(seed), lambda span: NOISE)


@pytest.mark.parametrize(("kind", "low", "high"), [("noise", 0, 15), ("music", 5, 25), ("babble", 13, 20)])
def test_half_the_clips_get_it_at_a_ratio_of_its_range(kind: str, low: float, high: float) -> None:
    """With recordings of one kind there are two things that a clip may get: nothing and it."""
    outs = [corrupted(kind, seed) for seed in range(160)]
    changed = [ratio(out) for out in outs if not np.array_equal(out, CLIP)]
    assert len(changed) == pytest.approx(80, abs=25)
    assert low <= min(changed) < low + 2
    assert high - 2 < max(changed) <= high + 0.01


def test_one_of_six_evenly() -> None:
    """What was read tells which of the six a clip got."""
    files = {kind: (Span(Path(kind)),) for kind in ("noise", "music", "babble", "room")}
    counts, voices = Counter[frozenset[str]](), set[int]()
    for seed in range(600):
        read: list[str] = []

        def draw(span: Span, read: list[str] = read) -> Samples:
            read.append(span.path.name)
            return NOISE

        Corruption(files)(CLIP, np.random.default_rng(seed), draw)  # type: ignore[arg-type]
        counts[frozenset(read)] += 1
        voices.add(read.count("babble"))
    assert set(counts) == {frozenset(mix) for mix in MIXES}
    assert all(count == pytest.approx(100, abs=30) for count in counts.values())
    assert voices == {0, 3, 4, 5, 6, 7, 8}


def test_a_room_is_a_convolution() -> None:
    response = np.array([0.0, 3.0, 0.0, 4.0], np.float32)
    expected = np.convolve(CLIP, response / 5.0)[: len(CLIP)]
    np.testing.assert_allclose(reverberated(CLIP, response), expected, atol=1e-5)
    np.testing.assert_array_equal(reverberated(CLIP, np.zeros(4, np.float32)), CLIP)


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
