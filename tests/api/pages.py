"""Fixtures and steps of all tests that drive the console in a browser."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import browser
from tests.api.live import Live
from tests.browser import Page
from tests.synthesis import encode, tone


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    microphone = tmp_path_factory.mktemp("microphone") / "tone.wav"
    microphone.write_bytes(encode(tone(2.0, rate=48_000), 48_000))
    with browser.browsing(tmp_path_factory.mktemp("profile"), microphone) as page:
        yield page


@pytest.fixture
def page(chromium: Page, live: Live) -> Iterator[Page]:
    chromium.faults.clear()
    chromium.asked.clear()
    opened(chromium, live.url)
    yield chromium
    assert chromium.faults == []
    assert not [url for url in chromium.asked if not url.startswith((live.url, "blob:", "data:", "about:"))]


@pytest.fixture
def clips(tmp_path: Path, clip: bytes, other_clip: bytes) -> tuple[Path, Path]:
    paths = (tmp_path / "clip one.wav", tmp_path / "two.wav")
    for path, content in zip(paths, (clip, other_clip), strict=True):
        path.write_bytes(content)
    return paths


def opened(page: Page, url: str, view: str = "try") -> None:
    page.open("about:blank")
    page.open(f"{url}/#/{view}")
    page.until(
        "document.querySelector('#status')?.textContent === 'Ready' && document.querySelector('#view h1') !== null"
    )


def choose_adapters(page: Page, *names: str, field: str = "adapter") -> None:
    """Leaves these alone chosen."""
    page.until("document.querySelectorAll('.offered button, .chip').length > 0")
    page.evaluate("while (document.querySelector('.chip button')) document.querySelector('.chip button').click()")
    for count, name in enumerate(names, 1):
        page.evaluate(f"document.querySelector('#{field}-name').value = '{name}'")
        page.click(f"#{field}-add")
        page.until(f"document.querySelectorAll('.chip').length === {count}")


def ask(page: Page) -> None:
    page.click("#run")
    page.until("!document.querySelector('#run').disabled")


def shown_labels(page: Page) -> list[str]:
    page.until("document.querySelectorAll('#answer .bars li').length > 0")
    return list(page.evaluate("[...document.querySelectorAll('#answer .bars .label')].map(label => label.textContent)"))


def tab_to(page: Page, selector: str) -> None:
    """Goes on by Tab until what `selector` names has the focus."""
    for _ in range(80):
        if page.evaluate(f"document.activeElement.matches({json.dumps(selector)})"):
            return
        page.press("Tab")
    raise AssertionError(f"Tab does not reach {selector}")


def type_in(page: Page, selector: str, text: str) -> None:
    tab_to(page, selector)
    page.call("Input.insertText", text=text)
