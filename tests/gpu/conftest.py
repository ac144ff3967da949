"""The device that these tests run on: a GPU, or with `DAY_DEVICE=cpu` the CPU, which tries every line of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.model.backbone import Backbone
from service.model.loading import load_backbone
from service.model.spec import TaskType
from tests.api.live import Live, running, settings_for
from tests.backbones import save_tiny_wav2vec2

DEVICE = os.environ.get("DAY_DEVICE", "cuda")
IS_DRY = DEVICE == "cpu"  # a try, in which every line runs, but once
ARCHITECTURES = ["wav2vec2-layer-norm"] if IS_DRY else ["ast", "wav2vec2", "wav2vec2-layer-norm"]
SLOTS = 8
CLASSIFIERS, VERIFIERS = 10, 2  # more than slots


@pytest.fixture(scope="session")
def device() -> str:
    return DEVICE


@pytest.fixture(scope="module", params=ARCHITECTURES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "wav2vec2-layer-norm":
        return save_tiny_wav2vec2(tmp_path_factory.mktemp("layer-norm"), norm="layer")
    found: Path = request.getfixturevalue(f"tiny_{request.param}_dir")
    return found


@pytest.fixture(scope="module")
def exact(directory: Path) -> Backbone:
    """The reference: the same backbone in float32 on the CPU."""
    return load_backbone(str(directory), "cpu", "float32")


@pytest.fixture(scope="module")
def served(device: str, tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A service on the device, in this process: `sound-0` and so on classify, `voice-0` and so on verify."""
    place = tmp_path_factory.mktemp("gpu")
    settings = settings_for(tiny_ast_dir, place / "data", device=device, adapter_slots=SLOTS)
    with running(settings) as service:
        for i in range(CLASSIFIERS):
            service.publish(place, f"sound-{i}", seed=i, prompt_length=i % 5, bottleneck_dim=4 * (i % 3))
        for i in range(VERIFIERS):
            service.publish(place, f"voice-{i}", seed=i, task=TaskType.VERIFICATION)
        yield service
