"""The console hears recordings, as a job too, and the microphone live; its tables are the service's own."""

from pathlib import Path

import pytest

from tests import browser
from tests.api.live import Live
from tests.api.pages import choose_adapters, opened
from tests.browser import Page
from tests.synthesis import encode, noise

pytestmark = pytest.mark.skipif(
    browser.installed() is None, reason=f"no Chromium here: none of {', '.join(browser.NAMES)} is installed"
)
SECONDS = 12.0


@pytest.fixture
def recording(page: Page, live: Live, tmp_path: Path) -> Path:
    """A recording that is chosen, with the adapter alpha and a threshold that all it says passes."""
    path = tmp_path / "night, one.wav"
    path.write_bytes(encode(noise(SECONDS)))
    opened(page, live.url, "recordings")
    choose_adapters(page, "alpha", field="recording-adapter")
    page.choose_files("#recording", path)
    page.evaluate("document.querySelector('#threshold').value = 0.01")
    return path


def tables(page: Page) -> dict[str, str]:
    """What the buttons save."""
    page.evaluate("window.saved = []; URL.createObjectURL = blob => (saved.push(blob), 'about:blank')")
    page.evaluate("HTMLAnchorElement.prototype.click = () => {}")
    for form in ("CSV", "Audacity", "Raven"):
        page.click(f"[aria-label='Download for {form}']")
    return dict(
        zip(("csv", "audacity", "raven"), page.evaluate("Promise.all(saved.map(one => one.text()))"), strict=True)
    )


def test_a_recording_is_heard_in_lanes(page: Page, live: Live, recording: Path) -> None:
    page.click("#listen")
    page.until("document.querySelector('.lane button') !== null && !document.querySelector('#listen').disabled")
    asked = {"adapter": "alpha", "threshold": "0.01"}
    forms = {"csv": "text/csv", "audacity": "text/x-audacity-labels", "raven": "text/x-raven-table"}
    told = {
        form: live.http.post(
            "/v1/events",
            params=asked,
            files={"audio": (recording.name, recording.read_bytes())},
            headers={"Accept": kind},
        ).text
        for form, kind in forms.items()
    }
    assert len(told["csv"].splitlines()) > 2
    lanes = "document.querySelectorAll('.lane button').length"
    assert page.evaluate(lanes) == len(told["csv"].splitlines()) - 1
    assert page.text(".zoom [role=status]") == f"{SECONDS:.2f} s"
    assert tables(page) == told
    label = told["csv"].splitlines()[-1].rsplit(",", 4)[1]
    page.evaluate(f"document.querySelector('#by-label').value = '{label}'")
    page.evaluate("document.querySelector('#by-label').dispatchEvent(new Event('change'))")
    assert page.evaluate(lanes) == told["csv"].count(f",{label},")
    page.evaluate("document.querySelector('#by-score').value = 1")
    page.evaluate("document.querySelector('#by-score').dispatchEvent(new Event('input'))")
    assert "No event is like that" in page.text("[aria-label=Events]")
    page.click("[aria-label='Zoom in']")
    assert page.text(".zoom [role=status]") == "3.00 s to 9.00 s of 12.00 s"


def test_a_job_hears_it_later(page: Page, live: Live, recording: Path) -> None:
    page.click("#later")
    page.until("document.querySelector('.jobs .badge.done') !== null")
    page.click("[aria-label^='Show job']")
    page.until("document.querySelector('.lane button') !== null")
    page.click("[aria-label^='Remove job']")
    page.until("document.querySelector('.jobs li') === null")
    assert live.http.get("/v1/jobs").json()["jobs"] == []


def test_the_microphone_is_heard_live(page: Page, live: Live, recording: Path) -> None:
    page.click("#live")
    page.until("document.querySelectorAll('#now .bars li').length > 0")
    page.click("#live")
    page.until("document.querySelector('#live').ariaPressed === 'false'")
    page.until("document.querySelector('[aria-label=Events] p[role=status]').textContent.includes(' of ')")
    assert page.evaluate("document.querySelectorAll('#view .problem, #toasts .problem').length") == 0
