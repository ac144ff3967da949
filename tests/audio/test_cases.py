"""The small inputs that went wrong, where they lie beside the checkout: each kind has tests of its own elsewhere."""

from pathlib import Path

import numpy as np
import pytest

from service.audio.decode import decode
from service.audio.waveform import Waveform
from service.errors import BadAudio

CASES = Path(__file__).parents[3] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the inputs are not here")


def heard(name: str) -> Waveform:
    return decode((CASES / name).read_bytes())


@pytest.mark.parametrize(
    ("name", "plain"), [("flac-in-ogg/a.flac.oga", "flac-in-ogg/a.wav"), ("wav-24-in-32/ext24in32.wav",) * 2]
)
def test_equal_to_the_plain_file(name: str, plain: str) -> None:
    plain = plain.replace("ext24in32", "plain")
    np.testing.assert_allclose(heard(name).samples, heard(plain).samples, atol=1e-4)


def test_lengths_to_a_sample() -> None:
    assert len(heard("opus-in-webm/b.webm").samples) == len(heard("opus-in-webm/b.wav").samples) == 48_000
    chain, reference = heard("chained-ogg/chain_rate.ogg").samples, heard("chained-ogg/chain_ref.wav").samples
    assert len(chain) == len(reference)
    assert np.corrcoef(chain, reference)[0, 1] > 0.99


@pytest.mark.parametrize("name", ["second-stream/ac3_then_aac.mp4", "stream-dumps/cut_start_700.mp3"])
def test_heard_at_all(name: str) -> None:
    assert heard(name).seconds > 0.7


def test_refused_in_plain_words() -> None:
    for name, words in (("damaged/bitflip.flac", "damaged"), ("bare-flac-frames/f_nohdr.flac", "'fLaC'")):
        with pytest.raises(BadAudio, match=words):
            heard(name)
