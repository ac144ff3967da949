import logging
from pathlib import Path

import numpy as np
import pytest

from service.training.recordings import Recordings
from tests.training.miniature import write_clip


def test_faulty_files_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad, short, missing = (tmp_path / f"{name}.flac" for name in ("good", "bad", "short", "missing"))
    write_clip(good, 440)
    bad.write_bytes(b"not audio at all")
    write_clip(short, 440, seconds=0.01)
    recordings = Recordings()
    with caplog.at_level(logging.WARNING):
        assert list(recordings.readable([good, bad, missing, short, good])) == [good]
    assert set(recordings.faults) == {bad, short, missing}
    assert "No such file" in recordings.faults[missing]
    assert all(path.name in caplog.text for path in recordings.faults)


def test_what_does_not_fit_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    write_clip(path, 440)
    kept, forgotten = Recordings(), Recordings(memory_seconds=0.1)
    first = kept.samples(path)
    assert kept.samples(path) is first
    again = forgotten.samples(path)
    np.testing.assert_array_equal(again, first)
    assert forgotten.samples(path) is not again
