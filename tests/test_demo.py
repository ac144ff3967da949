"""The demo runs to its end on a small backbone with random adapters, and says so when it cannot."""

from pathlib import Path

import pytest

from service.client import Client
from service.model.backbone import Backbone
from service.model.spec import TaskType
from tests import demo
from tests.bundles import random_bundle
from tests.cli.process import serving


@pytest.fixture
def bundles(tmp_path: Path, tiny_ast: Backbone, tiny_ast_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random bundles under the names that the demo asks for."""
    directory = tmp_path / "bundles"
    of_name = {
        "sound-events": {"labels": ["rain", "dog"]},
        "keywords": {"labels": ["yes", "left"]},
        "digits": {"labels": [str(digit) for digit in range(10)]},
        "speaker": {"task": TaskType.VERIFICATION},
        "music-style": {"labels": ["dance", "madrigal"]},
    }
    for name, fields in of_name.items():
        random_bundle(directory, tiny_ast.spec, name, **fields)
        (directory / f"{name}-0").rename(directory / name)
    monkeypatch.setattr(demo, "BUNDLES", directory)
    monkeypatch.setenv("IPET_BACKBONE", str(tiny_ast_dir))
    monkeypatch.setenv("IPET_DEVICE", "cpu")
    monkeypatch.setenv("IPET_DTYPE", "float32")
    return directory


def test_demo_shows_every_task_and_the_swap(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 0
    shown = capsys.readouterr().out
    steps = ("classify", "one request", "embed", "score", "enrol", "verify", "identify", "opt out", "upload")
    assert shown.count("music-style") >= 2
    for step in (*steps, "hot swap to", "rollback to", "failed: 0"):
        assert step in shown, f"{step!r} is not in the table:\n{shown}"


def test_demo_fails_when_the_server_cannot_start(
    bundles: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IPET_BACKBONE", str(bundles / "nothing-here"))
    assert demo.main() == 1
    assert "did not become ready" in capsys.readouterr().out


def test_demo_names_the_bundles_that_it_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "BUNDLES", tmp_path)
    assert demo.main() == 1
    assert "sound-events, keywords, digits, speaker, music-style" in " ".join(capsys.readouterr().out.split())


def test_the_shipped_speaker_adapter_accepts_and_rejects(tmp_path: Path) -> None:
    """The demo's trials end as it says, one of them with a reject."""
    with serving("embedded", tmp_path / "data", adapters=demo.BUNDLES) as served, Client(served.url) as client:
        decided = [
            client.score(demo.EXAMPLES / enrolment, demo.EXAMPLES / test, "speaker")["decision"]
            for _, enrolment, test, _ in demo.TRIALS
        ]
    assert decided == [expected for *_, expected in demo.TRIALS]
    assert set(decided) == {"accept", "reject"}
