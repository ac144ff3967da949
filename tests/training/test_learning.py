"""A two-minute run on real recordings learns: its report beats chance by a wide margin. Miniatures: test_loop.py."""

import os
import time
from pathlib import Path

import pytest

from service.training.checkpoint import read_epochs
from service.training.loop import train
from service.training.methods import merge
from service.training.recipe import parse_recipe, read_recipe
from service.training.shipped import find_recipe

DATA = Path(os.environ.get("IPET_DEV_DATA", Path(__file__).parents[3] / "shared" / "data"))
SHORT = {"optimiser": {"epochs": 5}, "augment": {"views": 1}, "refit": False}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}; set IPET_DEV_DATA")
def test_digits_are_learnt_in_minutes(tmp_path: Path) -> None:
    """Chance is 0.1; the speaker of the report is never heard in training."""
    recipe = parse_recipe(merge(read_recipe(find_recipe("digits")).model_dump(mode="json"), SHORT))
    started = time.monotonic()
    result = train(recipe, DATA / "fsdd", tmp_path / "out", dtype="float32", progress=False, workers=1)
    accuracy, losses = (
        result.metrics["report"]["accuracy"],
        [round(each.loss, 3) for each in read_epochs(result.directory)],
    )
    print(f"accuracy {accuracy}, losses {losses}, {time.monotonic() - started:.0f} s")
    assert accuracy > 0.5
    assert losses[-1] < losses[0]
