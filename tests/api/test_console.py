"""The console in a real browser: it classifies, compares, uploads and rolls back, by keyboard too, without a fault."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.model.spec import TaskType
from service.registry.bundle import BundleFiles
from tests import browser
from tests.api.live import Live, running, settings_for
from tests.browser import Page
from tests.bundles import random_bundle
from tests.synthesis import encode, noise

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


def greens(picture: NDArray[np.int16]) -> NDArray[np.bool_]:
    return picture[..., 1] - picture[..., 0] > 40


def reds(picture: NDArray[np.int16]) -> NDArray[np.bool_]:
    return picture[..., 0] - picture[..., 1] > 40


def test_a_bar_is_filled_as_far_as_its_score(page: Page, clips: tuple[Path, Path]) -> None:
    choose_adapter(page, "alpha")
    page.choose_files("#clip", clips[0])
    page.click("#run")
    shown_labels(page)
    score = float(page.text("#answer .bars li:first-child .score"))
    bar = "document.querySelector('#answer .bars li').children[1].getBoundingClientRect()"
    width, height = page.evaluate(f"{bar}.width"), page.evaluate(f"{bar}.height")
    green = greens(page.picture("#answer .bars li:first-child"))
    assert abs(green.any(axis=0).sum() / width - score) < 0.02
    assert green.any(axis=1).sum() > 0.85 * height


def compare(page: Page, adapter: str, enrolment: Path, test: Path) -> NDArray[np.int16]:
    """The picture of the scale that is drawn under the verdict."""
    choose_adapter(page, adapter)
    page.evaluate("document.querySelector('#answer').replaceChildren()")
    page.choose_files("#enrolment", enrolment)
    page.choose_files("#test", test)
    page.click("#run")
    page.until("document.querySelector('#answer .decision') !== null")
    return page.picture("#answer .scale")


def test_compares_two_clips(page: Page, clips: tuple[Path, Path]) -> None:
    choose_adapter(page, "gamma")
    page.choose_files("#enrolment", clips[0])
    page.click("#run")
    assert "Choose a clip first" in page.text("#answer")
    scale = compare(page, "gamma", clips[0], clips[0])
    assert "Same speaker" in page.text("#answer")
    assert "score 1.000 against threshold 0.250" in page.text("#answer")
    assert greens(scale).sum() > 1000
    assert not reds(scale).any()


def test_a_rejected_clip_is_drawn_as_one(page: Page, live: Live, clips: tuple[Path, Path], tmp_path: Path) -> None:
    live.publish(tmp_path, "strict", task=TaskType.VERIFICATION, threshold=0.99999)
    scale = compare(page, "strict", *clips)
    assert "Not the same speaker" in page.text("#answer")
    assert reds(scale).sum() > 1000
    assert not greens(scale).any()
    live.http.delete("/v1/adapters/strict")


def test_what_was_heard_is_shown(page: Page, live: Live, tmp_path: Path) -> None:
    """A long clip is answered from its first window: how much that was is drawn and told."""
    window = {"sampling_rate": 16000, "window_frames": 64, "windows": 1, "mean": -6.0, "std": 5.0}
    live.publish(tmp_path, "brief", input=window, reject_below=0.999)
    (tmp_path / "long.wav").write_bytes(encode(noise(4.0)))
    choose_adapter(page, "brief")
    page.choose_files("#clip", tmp_path / "long.wav")
    page.click("#run")
    shown_labels(page)
    told = page.evaluate("[...document.querySelectorAll('#answer .note')].map(note => note.textContent)")
    assert "may be none of these labels" in told[0]
    assert told[1].startswith("Heard 0.00 to 0.64 s of 4.00 s")
    box = "document.querySelector('#answer .note .bar').getBoundingClientRect()"
    filled = "document.querySelector('#answer .note .fill').getBoundingClientRect()"
    assert page.evaluate(f"{filled}.width / {box}.width") == pytest.approx(0.16, abs=0.005)
    assert page.evaluate(f"{filled}.left - {box}.left") == 0
    live.http.delete("/v1/adapters/brief")


def test_a_clip_that_is_heard_whole_needs_no_word(page: Page, clips: tuple[Path, Path]) -> None:
    choose_adapter(page, "alpha")
    page.choose_files("#clip", clips[0])
    page.click("#run")
    shown_labels(page)
    assert page.evaluate("document.querySelectorAll('#answer .note').length") == 0


def test_too_little_speech_is_no_verdict(page: Page, live: Live, clips: tuple[Path, Path], tmp_path: Path) -> None:
    live.publish(tmp_path, "listening", task=TaskType.VERIFICATION, speech={})
    choose_adapter(page, "listening")
    page.choose_files("#enrolment", clips[0])
    page.choose_files("#test", clips[0])
    page.click("#run")
    page.until("document.querySelector('#answer .decision') !== null")
    assert page.text("#answer .decision") == "Not enough speech to tell"
    assert "somebody speaks for 0.0 s and 0.0 s" in page.text("#answer")
    assert page.evaluate("document.querySelector('#answer .scale')") is None
    live.http.delete("/v1/adapters/listening")


def test_what_was_done_is_told_in_sight(page: Page) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=1000, height=220, deviceScaleFactor=1, mobile=False)
    page.until("document.querySelectorAll('.adapter').length >= 3")
    page.evaluate("document.querySelectorAll('.adapter').forEach(adapter => { adapter.open = true })")
    button = "document.querySelector(\"[data-key^='alpha/1/']\")"
    page.evaluate(f"{button}.scrollIntoView()")
    page.evaluate(f"{button}.click()")
    page.until("document.querySelector('#adapters-notice .done') !== null")
    assert page.in_sight("#adapters-notice .done")
    page.call("Emulation.clearDeviceMetricsOverride")


def test_the_reason_of_a_failure_is_shown(page: Page, live: Live, tmp_path: Path, clip: bytes) -> None:
    live.publish(tmp_path, "broken-file", seed=31)
    registry = live.context.runtime.registry
    path = registry.weights_path(registry.resolve("broken-file"))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    live.http.post("/v1/adapters/broken-file/unload")
    assert live.http.post("/v1/classify?adapter=broken-file", content=clip).status_code == 503
    page.until("document.querySelector('[data-key=broken-file]') !== null")
    page.click("[data-key=broken-file]")
    page.until("document.querySelector('[data-key=broken-file]').innerText.includes('failed')")
    assert "its digest is sha256:" in page.evaluate(
        "document.querySelector('[data-key=broken-file]').closest('details').innerText"
    )
    live.http.delete("/v1/adapters/broken-file")


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


def test_a_key_that_only_infers_names_its_adapter(
    chromium: Page, tiny_ast_dir: Path, tmp_path: Path, clips: tuple[Path, Path]
) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data", admin_keys="root")) as service:
        service.http.headers["Authorization"] = "Bearer root"
        service.publish(tmp_path, "only")
        service.publish(tmp_path, "voice", task=TaskType.VERIFICATION)
        words = ["keys", "create", "--scopes", "infer", "--data-dir", str(tmp_path / "data")]
        made = subprocess.run([sys.executable, "-m", "service", *words], capture_output=True, text=True, check=True)
        chromium.open(service.url)
        chromium.until("!document.querySelector('#key-section').hidden")
        chromium.evaluate(f"document.querySelector('#key').value = '{made.stdout.strip()}'")
        chromium.click("#key-form button")
        chromium.until("document.querySelector('#status').textContent === 'Ready'")
        chromium.choose_files("#clip", clips[0])
        chromium.click("#run")
        assert "Name the adapter first" in chromium.text("#answer")
        chromium.evaluate("document.querySelector('#adapter-name').value = 'only@1'")
        chromium.click("#run")
        assert set(shown_labels(chromium)) <= {"dog", "rain", "clock", "siren", "cat", "wind", "door"}
        chromium.evaluate("document.querySelector('#adapter-name').value = 'voice'")
        chromium.evaluate("document.querySelector('#task').value = 'SPEAKER_VERIFICATION'")
        chromium.evaluate("document.querySelector('#task').dispatchEvent(new Event('change'))")
        for zone in ("#enrolment", "#test"):
            chromium.choose_files(zone, clips[0])
        chromium.click("#run")
        chromium.until("document.querySelector('#answer .decision') !== null")
        assert "Same speaker" in chromium.text("#answer")
        chromium.open("about:blank")


def test_the_api_is_described(page: Page, live: Live) -> None:
    page.open(f"{live.url}/docs")
    page.until("document.querySelectorAll('.operation').length > 30")
    assert "/v1/adapters/{name}/aliases/{alias}" in page.text("#groups")
    assert page.evaluate("document.querySelectorAll('#notice *').length") == 0
