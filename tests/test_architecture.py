"""A real request, followed through the files that docs/ARCHITECTURE.md names; how many calls and threads it takes."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import Settings
from tests.api.live import running
from tests.walk import ADAPTER, CLIP, ROOT, Recorder, Walk

PAGE = Path("docs/ARCHITECTURE.md")
FRONT_CALLS = 180  # of a warm classify outside audio/ and model/, which do the work itself
SCREEN = 60  # lines
BESIDE = ("engine/loader.py", "engine/device.py")  # not met where the adapter is resident; a protocol


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    recorder = Recorder()
    settings = Settings(data_dir=tmp_path_factory.mktemp("walk") / "data", adapters=Path("adapters/bundles"), port=0)
    try:
        with running(settings) as live:
            clip = CLIP.read_bytes()

            def ask() -> None:
                live.http.post(f"/v1/classify?adapter={ADAPTER}", content=clip).raise_for_status()

            yield recorder.walk(ask)
    finally:
        recorder.close()


def test_a_request_takes_the_walk_that_the_page_tells(walk: Walk) -> None:
    steps = re.findall(r"^(\d)\. (.*?)(?=^\d\. |^$)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [number for number, _ in steps] == list("12345678")
    met = walk.files
    last = 0
    for number, text in steps:
        named = [file for file in re.findall(r"`(\w+/[\w/]+\.py)`", text) if file not in BESIDE]
        assert named, number
        assert not set(named) - set(met), (number, set(named) - set(met))
        begins = met.index(named[0])
        assert begins >= last, (number, named, met)
        last = begins


def test_the_files_and_names_of_the_page_are_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= SCREEN
    for file in re.findall(r"`(\w+/[\w/]+\.py)`", text):
        assert (ROOT / file).exists() or Path(file).exists(), file


def test_a_request_looks_at_the_room_once_and_crosses_four_threads(walk: Walk) -> None:
    assert walk.times("engine/room.py", "Room.take") == 1
    assert walk.times("engine/room.py", "Room.give_back") == 1
    assert walk.switches == 4


def test_what_a_request_calls_does_not_grow(walk: Walk) -> None:
    front = [call for call in walk.calls if not call.file.startswith(("audio/", "model/"))]
    assert len(front) <= FRONT_CALLS, f"{len(front)} calls: python -m tests.walk tells where"
