import struct
from pathlib import Path

import numpy as np
import pytest

from service.errors import BadAudio, ClipTooShort
from service.training.recordings import Recordings
from service.training.sun_audio import decode_sun
from tests.synthesis import loudest_hz, tone


def sun(
    seconds: float = 1.0, rate: int = 22_050, channels: int = 1, encoding: int = 3, note: bytes = b"\0" * 4
) -> bytes:
    frames = (tone(seconds, 440.0, rate, channels) * 2**15).astype(">i2").tobytes()
    header = struct.pack(">4s5I", b".snd", 24 + len(note), len(frames), encoding, rate, channels)
    return header + note + frames


@pytest.mark.parametrize("channels", [1, 2])
def test_reads_what_gtzan_has(channels: int, tmp_path: Path) -> None:
    path = tmp_path / "blues.00000.au"
    path.write_bytes(sun(channels=channels))
    samples = Recordings().samples(path)
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(16_000, abs=2)
    assert loudest_hz(samples) == pytest.approx(440, abs=2)
    assert np.abs(samples[1000:-1000]).max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("encoded", [b"", b".snd", b"RIFF" * 9, sun(encoding=1), sun(rate=1), sun(channels=9)])
def test_refuses(encoded: bytes) -> None:
    with pytest.raises(BadAudio):
        decode_sun(encoded)


def test_under_one_frame() -> None:
    with pytest.raises(ClipTooShort, match="at least 400"):
        decode_sun(sun(seconds=0.01))
    with pytest.raises(ClipTooShort):
        decode_sun(sun()[:29])
