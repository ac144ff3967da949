"""Fixtures of all tests that ask a running service: the service, and clips for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.model.spec import TaskType
from tests.api.live import Live, running, settings_for
from tests.synthesis import encode, noise, tone


@pytest.fixture(scope="module")
def live(tiny_ast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Adapters `alpha` and `beta` classify, `gamma` verifies; tests add adapters of their own names."""
    directory = tmp_path_factory.mktemp("live")
    with running(settings_for(tiny_ast_dir, directory / "data", max_clips=8, max_adapters=8)) as service:
        for seed, name in enumerate(("alpha", "beta")):
            service.publish(directory, name, seed=seed)
        service.publish(directory, "gamma", task=TaskType.VERIFICATION)
        yield service


@pytest.fixture(scope="session")
def clip() -> bytes:
    """1.5 s of noise, wav."""
    return encode(noise(1.5, seed=1))


@pytest.fixture(scope="session")
def other_clip() -> bytes:
    """0.9 s of a tone, stereo flac at 44.1 kHz."""
    return encode(tone(0.9, rate=44_100, channels=2), 44_100, "flac")
