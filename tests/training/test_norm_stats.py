from pathlib import Path

import pytest
import torch

from service.audio.filter_bank import fbank
from service.training.datasets.dataset import BadDataset
from service.training.datasets.load import load_dataset
from service.training.norm_stats import norm_stats
from service.training.recipe import parse_recipe
from service.training.recordings import Recordings
from tests.training.miniature import ESC, make_esc

RECIPE = parse_recipe({"name": "n", "task": "classification", "data": ESC, "input": {"window_frames": 120}})


def test_statistics_are_those_of_the_training_windows(tmp_path: Path) -> None:
    data = make_esc(tmp_path, clips=1, seconds=1.0)
    rows = []
    for clip in load_dataset(data, RECIPE.data).train:
        frames = fbank(torch.from_numpy(Recordings().samples(clip.span)))
        assert len(frames) == 98
        rows.append(torch.cat((frames, torch.zeros(22, 128))))
    values = torch.stack(rows).double()
    (data / "audio" / load_dataset(data, RECIPE.data).selection[0].span.path.name).write_bytes(b"never read")
    stats = norm_stats(RECIPE, data)
    assert stats.mean == pytest.approx(float(values.mean()))
    assert stats.std == pytest.approx(float(values.std(correction=0)))
    assert (stats.clips, stats.skipped) == (6, 0)


def test_nothing_readable(tmp_path: Path) -> None:
    data = make_esc(tmp_path, clips=1, seconds=0.1)
    for path in (data / "audio").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(BadDataset, match="none of 6 training clips"):
        norm_stats(RECIPE, data)
