"""A clip is drawn in the console, played, and looked at more closely, however long it is."""

import re
import wave
from pathlib import Path

import numpy as np
import pytest

from tests import browser
from tests.api.pages import ask, choose_adapters
from tests.browser import Page
from tests.synthesis import encode, tone

pytestmark = pytest.mark.skipif(
    browser.installed() is None, reason=f"no Chromium here: none of {', '.join(browser.NAMES)} is installed"
)


def test_the_clip_is_drawn_and_played(page: Page, tmp_path: Path) -> None:
    """A tone at 440 Hz after a second of silence: nothing on the left, on the right a line low in the spectrogram."""
    silence = np.zeros((16_000, 1), np.float32)
    (tmp_path / "tone.wav").write_bytes(encode(np.concatenate([silence, tone(1.0)])))
    page.choose_files("#clip", tmp_path / "tone.wav")
    page.until("document.querySelector('.clip .axis') !== null")
    drawn = page.picture(".clip .spectrogram").sum(axis=2)
    height, width = drawn.shape
    assert np.ptp(drawn[5:-5, 5 : width // 2 - 20]) < 60
    brightest = drawn[:, 3 * width // 4].argmax()
    assert abs((1 - brightest / height) * 8000 - 440) < 120
    form = page.picture(".clip .wave")[..., 0]
    paper = form[2, 20]
    assert (form[:, width // 4] != paper).sum() <= 2 < 0.7 * height < 120
    assert (form[:, 3 * width // 4] != paper).sum() > 0.5 * len(form)
    page.evaluate("document.querySelector('audio').currentTime = 1.0")
    page.until("document.querySelector('.cursor').style.left === '50%'")


def test_a_stretch_is_dragged_over_and_looked_at(page: Page, tmp_path: Path) -> None:
    silence = np.zeros((16_000, 1), np.float32)
    (tmp_path / "tone.wav").write_bytes(encode(np.concatenate([silence, tone(1.0)])))
    choose_adapters(page, "alpha")
    page.choose_files("#clip", tmp_path / "tone.wav")
    page.click("#windows")
    ask(page)
    page.until("document.querySelector('#answer .lane button') !== null")
    page.evaluate("document.querySelector('.surface').scrollIntoView({block: 'center'})")
    box = page.evaluate("(b => [b.left, b.top, b.width])(document.querySelector('.surface').getBoundingClientRect())")
    for kind, share in (("mousePressed", 0.6), ("mouseMoved", 0.7), ("mouseReleased", 0.9)):
        where = {"x": box[0] + share * box[2], "y": box[1] + 20, "button": "left", "clickCount": 1}
        page.call("Input.dispatchMouseEvent", type=kind, **where)
    page.until("document.querySelector('.zoom [role=status]').textContent.includes(' of ')")
    first, last = re.findall(r"[\d.]+", page.text(".zoom [role=status]"))[:2]
    assert (float(first), float(last)) == (pytest.approx(1.2, abs=0.02), pytest.approx(1.8, abs=0.02))
    page.until("document.querySelector('.clip .axis').textContent.startsWith('1.3 s')")
    drawn = page.picture(".clip .wave")[..., 0]
    assert (drawn[:, len(drawn[0]) // 8] != drawn[2, 20]).sum() > 0.5 * len(drawn)  # the tone, not the silence
    assert page.text("#answer .axis").startswith("1.3 s")  # the lanes go with it
    page.click("[aria-label='All of the recording']")
    assert page.text(".zoom [role=status]") == "2.00 s"
    page.click("[aria-label='Zoom in']")
    page.click("[aria-label='Earlier']")
    assert page.text(".zoom [role=status]") == "0.00 s to 1.00 s of 2.00 s"


def test_a_wav_too_large_to_decode_is_drawn(page: Page, tmp_path: Path) -> None:
    """Twelve minutes of which the last three sound, read where they are looked at."""
    samples = np.zeros(12 * 60 * 16_000, np.int16)
    samples[-3 * 60 * 16_000 :] = (20_000 * np.sin(0.4 * np.arange(3 * 60 * 16_000))).astype(np.int16)
    with wave.open(str(tmp_path / "long.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    page.choose_files("#clip", tmp_path / "long.wav")
    page.until("document.querySelector('.zoom [role=status]')?.textContent === '12:00'")
    page.until("document.querySelector('.clip .axis') !== null")
    drawn = page.picture(".clip .wave")[..., 0]
    loud = (drawn != drawn[2, 20]).sum(axis=0) > 0.5 * len(drawn)
    assert loud.mean() == pytest.approx(0.25, abs=0.02)
    assert not loud[5 : int(0.7 * len(loud))].any()  # behind the cursor
    brightest = page.picture(".clip .spectrogram").sum(axis=2)[:, int(0.9 * len(loud))].argmax()
    height = page.evaluate("document.querySelector('.clip .spectrogram').clientHeight")
    assert abs((1 - brightest / height) * 8000 - 0.4 * 16_000 / (2 * np.pi)) < 150
