"""Accessibility of every view by axe-core, light and dark: `make test` gets it where there is npm."""

import os
import sys
from pathlib import Path

import pytest

from tests import browser
from tests.api.desk import EXAMPLES
from tests.api.live import Live, running, settings_for
from tests.api.pages import ask, choose_adapters, opened
from tests.browser import Page

ROOTS = (Path(os.environ.get("NODE_PATH", "node_modules")), Path(sys.prefix) / "node_modules")
AXE = next((path for root in ROOTS if (path := root / "axe-core" / "axe.min.js").is_file()), None)
pytestmark = pytest.mark.skipif(
    AXE is None or browser.installed() is None,
    reason="no Chromium, or no axe-core: npm install --no-save --prefix .venv axe-core",
)
FOUND = """axe.run(document, {resultTypes: ['violations']}).then(({violations}) => violations.flatMap(({id, nodes}) =>
    nodes.map(({target, failureSummary}) => `${id}: ${target.join(' ')}: ${failureSummary}`)))"""


def violations(page: Page) -> list[str]:
    """What axe finds wrong with the page as it is, in light and in dark."""
    assert AXE is not None
    if not page.evaluate("window.axe !== undefined"):
        page.evaluate(f"{AXE.read_text()}; undefined")
    found = []
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        found += [f"{scheme}: {one}" for one in page.evaluate(FOUND)]
    page.call("Emulation.setEmulatedMedia", features=[])
    return found


def test_the_form_for_a_key(chromium: Page, tiny_ast_dir: Path, tmp_path: Path) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data", inference_keys="one"), wait=False) as service:
        chromium.open(service.url)
        chromium.until("!document.querySelector('#key-section').hidden")
        assert violations(chromium) == []
        chromium.evaluate("document.querySelector('#key').value = 'wrong'")
        chromium.click("#key-form button")
        chromium.until("document.querySelector('#status').textContent === 'That key is not known'")
        assert violations(chromium) == []
        chromium.evaluate("sessionStorage.clear()")
        chromium.open("about:blank")


def test_try_with_an_answer_and_an_error(page: Page, clips: tuple[Path, Path], tmp_path: Path) -> None:
    choose_adapters(page, "alpha", "gamma")
    page.choose_files("#clip", clips[0])
    page.choose_files("#enrolment", clips[0])
    page.click("#windows")
    ask(page)
    page.until("document.querySelector('#answer .lane button') !== null")
    page.until("document.querySelector('.clip .axis') !== null")
    assert violations(page) == []
    (tmp_path / "none.wav").write_bytes(b"no audio")
    page.choose_files("#clip", tmp_path / "none.wav")
    assert "ask again" in page.text("#answer.stale .note")
    assert violations(page) == []
    ask(page)
    assert "bad_audio" in page.text("#answer")
    assert violations(page) == []


def test_recordings(page: Page, live: Live, clips: tuple[Path, Path]) -> None:
    opened(page, live.url, "recordings")
    choose_adapters(page, "alpha", field="recording-adapter")
    page.choose_files("#recording", clips[0])
    page.evaluate("document.querySelector('#threshold').value = 0.01")
    page.click("#listen")
    page.until("document.querySelector('.lane button') !== null && !document.querySelector('#listen').disabled")
    page.click("#later")
    page.until("document.querySelector('.jobs .badge.done') !== null")
    assert violations(page) == []
    page.click("[aria-label^='Remove job']")


def test_speakers(page: Page, service: Live) -> None:
    opened(page, service.url, "speakers")
    choose_adapters(page, "voice", field="speaker-adapter")
    page.choose_files("#voice", EXAMPLES / "speaker-ann-1.ogg")
    page.evaluate("document.querySelector('#speaker').value = 'axe-ann'")
    for step in ("enrol", "identify", "verify"):
        page.evaluate("document.querySelector('#voice-answer').replaceChildren()")
        page.click(f"#{step}")
        page.until("document.querySelector('#voice-answer').children.length > 0")
        page.until("document.querySelector('[data-speaker=axe-ann]') !== null")
        assert violations(page) == [], step
    page.click("[data-key='axe-ann/Delete']")
    page.until("document.querySelector('dialog') !== null")
    assert violations(page) == []
    page.click("dialog button")
    page.until("document.querySelector('[data-speaker=axe-ann]') === null")


def test_adapters_and_the_api(page: Page, live: Live) -> None:
    views = (
        ("adapters", "[data-name=gamma] button"),
        ("adapter/alpha", "#detail .facts"),
        ("adapter/none", ".problem"),
    )
    for view, drawn in views:
        opened(page, live.url, view) if view != "adapter/none" else page.evaluate("location.hash = '#/adapter/none'")
        page.until(f"document.querySelector('{drawn}') !== null")
        if view == "adapters":
            page.click("#upload-run")
            page.until("document.querySelector('#upload-notice .note') !== null")
        assert violations(page) == [], view
    page.open(f"{live.url}/docs")
    page.until("document.querySelectorAll('.operation').length > 30")
    assert violations(page) == []
