"""What each view is for, done by keyboard alone: Tab, Enter, Space and letters."""

from pathlib import Path

import pytest

from tests import browser
from tests.api.desk import EXAMPLES
from tests.api.live import Live
from tests.api.pages import opened, tab_to, type_in
from tests.browser import Page
from tests.synthesis import encode, noise

pytestmark = pytest.mark.skipif(
    browser.installed() is None, reason=f"no Chromium here: none of {', '.join(browser.NAMES)} is installed"
)


def test_an_adapter_is_searched_opened_and_pinned(page: Page, live: Live) -> None:
    opened(page, live.url, "adapters")
    page.until("document.querySelector('[data-name=beta]') !== null")
    type_in(page, "#by-q", "gam")
    page.until("document.querySelector('#count').textContent === '1'")
    tab_to(page, "[data-name=gamma] a")
    page.press("Enter")
    page.until("document.querySelector('.versions') !== null")
    assert page.evaluate("location.hash") == "#/adapter/gamma"
    assert page.evaluate("document.activeElement.id") == "main"
    pinned = "document.querySelector('.versions td').textContent.includes('pinned')"
    tab_to(page, "[data-key='gamma/1/Pin']")
    page.press("Enter")
    page.until(pinned)
    tab_to(page, "[data-key='gamma/1/Unpin']")
    page.press(" ")
    page.until(f"!{pinned}")


def test_a_version_is_made_live_and_back(page: Page, live: Live, tmp_path: Path) -> None:
    for seed in (1, 2):
        live.publish(tmp_path, "by-key", seed=seed)
    opened(page, live.url, "adapter/by-key")
    page.until("document.querySelector('#live')?.textContent.includes('version 2')")
    tab_to(page, "[data-key='by-key/1/Make live']")
    page.press("Enter")
    page.until("document.querySelector('dialog') !== null")
    assert page.evaluate("document.activeElement.closest('dialog') !== null")
    tab_to(page, "dialog button:first-of-type")
    page.press("Enter")
    page.until("document.querySelector('#live').textContent.includes('version 1')")
    tab_to(page, "#toasts .toast:last-child button")
    assert page.evaluate("document.activeElement.textContent") == "Undo"
    page.press("Enter")
    page.until("document.querySelector('#live').textContent.includes('version 2')")
    live.http.delete("/v1/adapters/by-key")


def test_a_recording_is_heard(page: Page, live: Live, tmp_path: Path) -> None:
    (tmp_path / "night.wav").write_bytes(encode(noise(6.0)))
    opened(page, live.url, "recordings")
    page.until("document.querySelector('.chip') !== null")
    tab_to(page, "#recording")
    page.choose_files("#recording", tmp_path / "night.wav")
    type_in(page, "#threshold", "0.01")
    page.press("Enter")
    page.until("document.querySelector('.lane button') !== null && !document.querySelector('#listen').disabled")
    same = "(one => one.left + ' ' + one.right)(document.querySelector('{}').getBoundingClientRect())"
    assert page.evaluate(same.format(".lane")) == page.evaluate(
        same.format(".clip .wave")
    )  # an event is below its sound
    tab_to(page, ".lane button")
    page.press("Enter")
    page.until("document.querySelector('.clip audio').currentTime > 0")


def test_a_speaker_is_enrolled_and_verified(page: Page, service: Live) -> None:
    opened(page, service.url, "speakers")
    tab_to(page, "#speaker-adapter-name")
    page.call("Input.insertText", text="voice")
    page.press("Enter")
    page.until("document.querySelector('.chip')?.textContent.startsWith('voice')")
    tab_to(page, "#voice")
    page.choose_files("#voice", EXAMPLES / "speaker-ann-1.ogg")
    type_in(page, "#speaker", "key-ann")
    tab_to(page, "#enrol")
    page.press("Enter")
    page.until("document.querySelector('#voice-answer').textContent.includes('key-ann')")
    page.until("document.querySelector('#enrol').ariaBusy === null")
    tab_to(page, "#verify")
    page.press("Enter")
    page.until("document.querySelector('#voice-answer .scale') !== null")
    assert "Same speaker" in page.text("#voice-answer")
    service.http.delete("/v1/speakers/key-ann")
