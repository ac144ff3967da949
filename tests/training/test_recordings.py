import logging
import struct
from pathlib import Path

import numpy as np
import pytest

from service.errors import BadAudio, ClipTooShort
from service.training.datasets.dataset import Span
from service.training.recordings import Recordings
from tests.synthesis import encode, loudest_hz, tone
from tests.training.miniature import write_clip


def test_faulty_files_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad, short, missing = (Span(tmp_path / f"{name}.flac") for name in ("good", "bad", "short", "missing"))
    write_clip(good.path, 440)
    bad.path.write_bytes(b"not audio at all")
    write_clip(short.path, 440, seconds=0.01)
    recordings = Recordings()
    with caplog.at_level(logging.WARNING):
        assert list(recordings.readable([good, bad, missing, short, good])) == [good]
    assert set(recordings.faults) == {bad, short, missing}
    assert "No such file" in recordings.faults[missing]
    assert all(span.path.name in caplog.text for span in recordings.faults)


def test_a_stretch_behind_the_end_is_told_with_both(tmp_path: Path) -> None:
    span, recordings = Span(tmp_path / "a.flac", 4.0, 5.0), Recordings()
    write_clip(span.path, 440, seconds=1.5)
    assert list(recordings.readable([span])) == []
    assert recordings.faults[span].startswith("from 4 s to 5 s of a file of 1.50 s: ")


def test_what_does_not_fit_is_read_again(tmp_path: Path) -> None:
    path = Span(tmp_path / "a.flac")
    write_clip(path.path, 440)
    kept, forgotten = Recordings(), Recordings(memory_seconds=0.1)
    first = kept.samples(path)
    assert kept.samples(path) is first
    again = forgotten.samples(path)
    np.testing.assert_array_equal(again, first)
    assert forgotten.samples(path) is not again


@pytest.mark.parametrize("container", ["wav", "flac", "mp3", "opus"])
def test_a_stretch_is_read_alone(tmp_path: Path, container: str) -> None:
    """A tone of its own in every second: where a stretch is from can be heard."""
    path = tmp_path / f"long.{container}"
    seconds = [tone(1.0, 200.0 * (1 + number), 24_000)[:, 0] for number in range(8)]
    path.write_bytes(encode(np.concatenate(seconds).astype(np.float32), container=container, rate=24_000))
    recordings = Recordings()
    for number in (0, 3, 7):
        samples = recordings.samples(Span(path, number + 0.1, number + 0.9))
        assert len(samples) == pytest.approx(12_800, abs=3)
        assert loudest_hz(samples) == pytest.approx(200 * (1 + number), abs=3)
    assert len(recordings.samples(Span(path, 6.5))) == pytest.approx(24_000, abs=1_700)
    with pytest.raises(ClipTooShort):
        recordings.samples(Span(path, 20.0, 21.0))


def sun(channels: int = 1, rate: int = 22_050) -> bytes:
    frames = (tone(1.0, 440.0, rate, channels) * 2**15).astype(">i2").tobytes()
    return struct.pack(">4s5I4s", b".snd", 28, len(frames), 3, rate, channels, b"note") + frames


@pytest.mark.parametrize("channels", [1, 2])
def test_reads_the_au_files_that_gtzan_has(channels: int, tmp_path: Path) -> None:
    path = tmp_path / "blues.00000.au"
    path.write_bytes(sun(channels))
    samples = Recordings().samples(Span(path))
    assert len(samples) == pytest.approx(16_000, abs=2)
    assert loudest_hz(samples) == pytest.approx(440, abs=2)
    assert np.abs(samples[1000:-1000]).max() == pytest.approx(0.5, abs=0.01)
    path.write_bytes(b"RIFF" * 9)
    with pytest.raises(BadAudio):
        Recordings().samples(Span(path))
