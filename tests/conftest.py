"""Fixtures shared by all rooms: tiny backbones on disk and in memory."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from service.model.backbone import Backbone
from service.model.loading import load_backbone
from tests.backbones import save_tiny_ast, save_tiny_wav2vec2

if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are shared out already
    torch.set_num_threads(1)

# A machine that pauses is no fault of what is tried.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

pytest_plugins = ["tests.api.fixtures", "tests.api.desk", "tests.api.pages", "tests.postgres", "tests.s3"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests run where there is a GPU, slow ones where they are asked for (`make test SLOW=1`)."""
    slow = os.environ.get("SLOW") == "1"
    device = torch.cuda.is_available() or os.environ.get("DAY_DEVICE") == "cpu"  # tests/gpu/day.sh tries them on a CPU
    for item in items:
        if item.get_closest_marker("gpu") and not device:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("slow") and not slow:
            item.add_marker(pytest.mark.skip(reason="slow: set SLOW=1"))


@pytest.fixture(scope="session")
def tiny_ast_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_ast(tmp_path_factory.mktemp("tiny-ast"))


@pytest.fixture(scope="session")
def tiny_wav2vec2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_wav2vec2(tmp_path_factory.mktemp("tiny-wav2vec2"))


@pytest.fixture(scope="session")
def tiny_ast(tiny_ast_dir: Path) -> Backbone:
    return load_backbone(str(tiny_ast_dir), "cpu", "float32")


@pytest.fixture(scope="session")
def tiny_wav2vec2(tiny_wav2vec2_dir: Path) -> Backbone:
    return load_backbone(str(tiny_wav2vec2_dir), "cpu", "float32")
