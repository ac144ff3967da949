"""The console in a real browser: it classifies, compares, uploads and rolls back, by keyboard too, without a fault."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.registry.bundle import BundleFiles
from tests import browser
from tests.api.live import Live, running, settings_for
from tests.browser import Page
from tests.bundles import random_bundle

pytestmark = pytest.mark.skipif(
    browser.installed() is None, reason=f"no Chromium here: none of {', '.join(browser.NAMES)} is installed"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser.browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(chromium: Page, live: Live) -> Iterator[Page]:
    chromium.faults.clear()
    chromium.open(live.url)
    chromium.until("document.querySelector('#status').textContent === 'Ready'")
    yield chromium
    assert chromium.faults == []


@pytest.fixture
def clips(tmp_path: Path, clip: bytes, other_clip: bytes) -> tuple[Path, Path]:
    paths = (tmp_path / "clip one.wav", tmp_path / "two.wav")
    for path, content in zip(paths, (clip, other_clip), strict=True):
        path.write_bytes(content)
    return paths


def choose_adapter(page: Page, name: str) -> None:
    page.until(f"[...document.querySelector('#adapter').options].some(option => option.value === '{name}')")
    page.evaluate(f"document.querySelector('#adapter').value = '{name}'")
    page.evaluate("document.querySelector('#adapter').dispatchEvent(new Event('change'))")


def shown_labels(page: Page) -> list[str]:
    page.until("document.querySelectorAll('#answer .bars li').length > 0")
    return list(page.evaluate("[...document.querySelectorAll('#answer .label')].map(label => label.textContent)"))


def test_classifies_a_file_by_keyboard(page: Page, live: Live, clips: tuple[Path, Path]) -> None:
    choose_adapter(page, "beta")
    page.choose_files("#clip", clips[0])
    assert "clip one.wav" in page.text("#clip-zone")
    page.evaluate("document.querySelector('#adapter').focus()")
    reached = []
    for _ in range(24):  # the player has several stops of its own
        page.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        if reached[-1] == "windows":
            page.press(" ")
        if reached[-1] == "run":
            break
    assert [name for name in reached if name in ("version", "clip", "windows", "run")] == [
        "version",
        "clip",
        "windows",
        "run",
    ]
    page.press("Enter")
    told = live.http.post("/v1/classify?adapter=beta", content=clips[0].read_bytes()).json()
    assert shown_labels(page) == [one["label"] for one in told["results"][0]["labels"]]
    assert page.evaluate("document.querySelectorAll('#answer .timeline tbody tr').length") == 3
    assert f"@'clip one.wav' '{live.url}/v1/classify?adapter=beta" in page.evaluate(
        "document.querySelector('#answer pre').textContent"
    )


def test_takes_a_dropped_file_and_tells_what_is_wrong(page: Page) -> None:
    page.evaluate(
        "(() => { const data = new DataTransfer(); data.items.add(new File(['<b>no audio</b>'], '<i>.wav'));"
        "document.querySelector('#clip-zone').dispatchEvent(new DragEvent('drop', {dataTransfer: data})) })()"
    )
    assert "<i>.wav (15 B)" in page.text("#clip-zone")
    page.click("#run")
    page.until("document.querySelector('#answer [role=alert]') !== null")
    told = page.text("#answer")
    assert "The audio could not be read" in told
    assert "clip 1: the clip is no audio file that is accepted" in told
    assert "bad_audio" in told


def test_compares_two_clips(page: Page, clips: tuple[Path, Path]) -> None:
    choose_adapter(page, "gamma")
    page.choose_files("#enrolment", clips[0])
    page.click("#run")
    assert "Choose a clip first" in page.text("#answer")
    page.choose_files("#test", clips[0])
    page.click("#run")
    page.until("document.querySelector('#answer .decision') !== null")
    assert "Same speaker" in page.text("#answer")
    assert "score 1.000 against threshold 0.250" in page.text("#answer")


def saved(files: BundleFiles, directory: Path) -> tuple[Path, Path]:
    directory.mkdir()
    paths = (directory / "adapter_config.json", directory / "adapter_model.safetensors")
    for path, content in zip(paths, (files.config, files.weights), strict=True):
        path.write_bytes(content)
    return paths


def test_uploads_rolls_back_and_forward(page: Page, live: Live, tmp_path: Path) -> None:
    live.publish(tmp_path, "rolling", seed=1)
    paths = saved(random_bundle(tmp_path, live.backbone, "rolling", 2), tmp_path / "second")
    page.choose_files("#bundle", paths[0])
    page.click("#upload-run")
    assert "adapter_model.safetensors together" in page.text("#upload-notice")
    page.choose_files("#bundle", *paths)
    page.click("#upload-run")
    page.until("document.querySelector('#upload-notice .done') !== null")
    assert "rolling version 2 is here and live" in page.text("#upload-notice")
    for version in (1, 2):
        page.click(f"[data-key='rolling/{version}/Make live']")
        page.until(f"document.querySelector('[data-key=rolling]').innerText.includes('live: version {version}')")
        assert live.http.get("/v1/adapters/rolling").json()["live"] == version
    page.click("[data-key='rolling/1/Load']")
    page.click("[data-key='rolling/1/Unload']")
    page.click("[data-key='rolling/1/Load']")


def test_asks_for_a_key(chromium: Page, tiny_ast_dir: Path, tmp_path: Path) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data", inference_keys="one", admin_keys="root")) as service:
        chromium.open(service.url)
        chromium.until("!document.querySelector('#key-section').hidden")
        for key, expected in (("wrong", "That key is not known"), ("one", "Ready")):
            chromium.evaluate(f"document.querySelector('#key').value = '{key}'")
            chromium.click("#key-form button")
            chromium.until(f"document.querySelector('#status').textContent === '{expected}'")
        assert chromium.evaluate("document.querySelector('#key-section').hidden")
        assert chromium.evaluate("document.cookie + localStorage.length + sessionStorage.length") == "00"
        chromium.open("about:blank")


def test_the_api_is_described(page: Page, live: Live) -> None:
    page.open(f"{live.url}/docs")
    page.until("document.querySelectorAll('.operation').length > 30")
    assert "/v1/adapters/{name}/aliases/{alias}" in page.text("#groups")
    assert page.evaluate("document.querySelectorAll('#notice *').length") == 0
