"""The console enrols, verifies, identifies and lets go of speakers."""

from pathlib import Path

import pytest

from service.model.spec import TaskType
from tests import browser
from tests.api.desk import ANN, BRIAN, EXAMPLES, SILENCE, SPEECH, Desk
from tests.api.live import Live
from tests.api.pages import choose_adapters, opened
from tests.browser import Page

pytestmark = pytest.mark.skipif(
    browser.installed() is None, reason=f"no Chromium here: none of {', '.join(browser.NAMES)} is installed"
)
SHARP = {"calibration": {"slope": 1e5, "intercept": -99_900.0}}  # only what is all but the same is somebody's


@pytest.fixture
def speakers(page: Page, service: Live) -> Page:
    opened(page, service.url, "speakers")
    choose_adapters(page, "voice", field="speaker-adapter")
    return page


def press(page: Page, button: str, speaker: str) -> str:
    """What is told of the voice that is chosen."""
    page.evaluate(f"document.querySelector('#speaker').value = '{speaker}'")
    page.evaluate("document.querySelector('#voice-answer').replaceChildren()")
    page.click(button)
    page.until("document.querySelector('#voice-answer').children.length > 0")
    return page.text("#voice-answer")


def test_a_speaker_from_first_clip_to_deletion(speakers: Page, desk: Desk, tmp_path: Path) -> None:
    page = speakers
    silence = tmp_path / "silence.wav"
    silence.write_bytes(SILENCE)
    assert "choose a clip first" in press(page, "#enrol", "console-ann")
    page.choose_files("#voice", EXAMPLES / "speaker-ann-1.ogg", silence)
    page.evaluate("document.querySelector('#consent-by').value = 'Jo'")
    page.evaluate("document.querySelector('#consent-text').value = '<b>Yes.</b>'")
    told = press(page, "#enrol", "console-ann")
    assert "Enrolled: console-ann" in told
    assert "silence.wav: nobody speaks in it" in told
    stored = desk.ask("GET", "/console-ann?adapter=voice")
    assert f"{stored['adapters'][0]['speech_seconds']:.1f} of 3.0 s of speech" in told
    assert stored["consent"]["by"] == "Jo"
    row = "[data-speaker=console-ann]"
    page.until(f"document.querySelector('{row} .badge')?.textContent === 'enrolled'")
    assert "<b>Yes.</b>" in page.evaluate(f"document.querySelector('{row} summary').textContent")

    page.choose_files("#voice", EXAMPLES / "speaker-ann-2.opus")
    told = press(page, "#verify", "console-ann")
    answer = desk.verify("console-ann", ANN[1])
    assert ("Same speaker" in told) is (answer["decision"] == "accept")
    assert f"score {answer['score']:.3f}" in told
    mark = "document.querySelector('#voice-answer .mark').style.left"
    assert float(page.evaluate(mark)[:-1]) == pytest.approx(50 * (answer["threshold"] + 1), abs=0.01)
    assert "not enrolled" in press(page, "#verify", "console-nobody")

    page.click(f"{row} [data-key='console-ann/Opt out']")
    page.click("dialog button")
    page.until(f"document.querySelector('{row} .badge')?.textContent === 'opted out'")
    assert "This person has opted out" in press(page, "#verify", "console-ann")
    page.click(f"{row} [data-key='console-ann/Opt in']")
    page.until(f"document.querySelector('{row} .badge')?.textContent !== 'opted out'")
    page.click(f"{row} [data-key='console-ann/Delete']")
    page.click("dialog button")
    page.until(f"document.querySelector('{row}') === null")
    assert desk.refused("GET", "/console-ann", 404) == "unknown_speaker"


def test_candidates_are_drawn_beside_the_threshold(speakers: Page, desk: Desk, service: Live, tmp_path: Path) -> None:
    service.publish(tmp_path, "drawn", task=TaskType.VERIFICATION, **SPEECH, **SHARP)
    for speaker, clip in (("drawn-ann", ANN[0]), ("drawn-brian", BRIAN)):
        desk.enrol(speaker, clip, adapter="drawn")
    choose_adapters(speakers, "drawn", field="speaker-adapter")
    speakers.choose_files("#voice", EXAMPLES / "speaker-ann-1.ogg")
    told = press(speakers, "#identify", "")
    answer = desk.ask("POST", "/identify?adapter=drawn", content=ANN[0])
    assert answer["decision"] == "identified"
    assert "Identified: drawn-ann" in told
    assert f"{answer['searched']} searched" in told
    drawn = speakers.evaluate(
        "[...document.querySelectorAll('.candidates li')].map(one => [one.firstChild.textContent,"
        " parseFloat(one.querySelector('.fill').style.width), parseFloat(one.querySelector('.mark').style.left)])"
    )
    assert [one[0] for one in drawn] == [one["speaker"] for one in answer["candidates"]]
    for (_, filled, mark), one in zip(drawn, answer["candidates"], strict=True):
        assert filled == pytest.approx(50 * (one["score"] + 1), abs=0.01)
        assert mark == pytest.approx(min(50 * (answer["threshold"] + 1), 100), abs=0.01)
