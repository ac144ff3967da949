"""The console in a real browser: adapters on a clip, by keyboard too, with what a key may not, without a fault."""

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.model.spec import TaskType
from tests import browser
from tests.api.live import Live, running, settings_for
from tests.api.pages import ask, choose_adapters, opened, shown_labels
from tests.browser import Page
from tests.synthesis import encode, noise
from tests.waiting import soon

pytestmark = pytest.mark.skipif(
    browser.installed() is None, reason=f"no Chromium here: none of {', '.join(browser.NAMES)} is installed"
)


def test_classifies_a_file_by_keyboard(page: Page, live: Live, clips: tuple[Path, Path]) -> None:
    choose_adapters(page, "beta")
    page.choose_files("#clip", clips[0])
    assert "clip one.wav" in page.text("#clip-zone")
    page.evaluate("document.querySelector('#adapter-name').focus()")
    reached = []
    for _ in range(40):  # the player and what is offered have several stops of their own
        page.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        if reached[-1] == "windows":
            page.press(" ")
        if reached[-1] == "run":
            break
    assert [name for name in reached if name in ("adapter-add", "clip", "record", "windows", "run")] == [
        *("adapter-add", "clip", "record", "windows", "run")
    ]
    page.press("Enter")
    told = live.http.post("/v1/classify?adapter=beta", content=clips[0].read_bytes()).json()
    assert shown_labels(page) == [one["label"] for one in told["results"][0]["labels"]]
    assert page.evaluate("document.querySelectorAll('#answer .lane button').length") == 3
    assert f"@'clip one.wav' '{live.url}/v1/classify?adapter=beta" in page.text("#answer pre")


def test_adapters_stand_side_by_side_until_something_changes(page: Page, clips: tuple[Path, Path]) -> None:
    choose_adapters(page, "alpha", "beta", "alpha@1")
    page.choose_files("#clip", clips[0])
    ask(page)
    assert page.evaluate("[...document.querySelectorAll('.column')].map(one => one.ariaLabel)") == [
        *("alpha", "beta", "alpha@1")
    ]
    took = page.evaluate("[...document.querySelectorAll('.took')].map(one => one.textContent)")
    assert all(re.fullmatch(r"\d+ ms", one) for one in took)
    assert page.evaluate("document.querySelectorAll('#answer.stale').length") == 0
    page.choose_files("#clip", clips[1])
    assert "ask again" in page.text("#answer.stale .note")


def test_a_file_that_is_gone_is_told(page: Page, clips: tuple[Path, Path]) -> None:
    choose_adapters(page, "alpha")
    page.choose_files("#clip", clips[0])
    clips[0].unlink()
    ask(page)
    assert "clip one.wav cannot be read any more" in page.text("#answer")


def test_the_microphone_is_heard(page: Page) -> None:
    choose_adapters(page, "alpha")
    page.click("#record")
    page.until("parseFloat(document.querySelector('.recording').textContent) > 0.8")
    page.click("#record")
    page.until("document.querySelector('#clip-zone').textContent.includes('recording.webm')")
    ask(page)
    assert shown_labels(page)
    seconds = float(re.search(r"([\d.]+) s · 48000 Hz", page.text("#answer .hint"))[1])  # type: ignore[index]
    assert 0.5 < seconds < 10


def test_commands_are_safe_to_paste(page: Page, live: Live, clip: bytes, tmp_path: Path) -> None:
    hostile = tmp_path / 'it\'s $(touch pwned) `id` "q"; <b>.wav'
    hostile.write_bytes(clip)
    choose_adapters(page, "alpha", "gamma")
    page.choose_files("#clip", hostile)
    page.choose_files("#enrolment", hostile)
    ask(page)
    assert page.evaluate("document.querySelectorAll('#view b').length") == 0
    lines = page.text("#answer pre").splitlines()
    shell = [subprocess.run(["sh", "-c", f"{line} -s"], cwd=tmp_path, capture_output=True) for line in lines]
    asked = [json.loads(one.stdout) for one in shell]
    assert asked[0]["results"][0]["adapter"] == "alpha"
    assert asked[1]["decision"] == "accept"
    page.evaluate("document.querySelectorAll('[role=tab]')[1].click()")
    code = page.text("#answer pre")
    printed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "'decision': 'accept'" in printed.stdout
    assert [path.name for path in tmp_path.iterdir()] == [hostile.name]


def test_takes_a_dropped_file_and_tells_what_is_wrong(page: Page) -> None:
    choose_adapters(page, "alpha")
    page.evaluate(
        "(() => { const data = new DataTransfer(); data.items.add(new File(['<b>no audio</b>'], '<i>.wav'));"
        "document.querySelector('#clip-zone').dispatchEvent(new DragEvent('drop', {dataTransfer: data})) })()"
    )
    page.until("document.querySelector('#clip-zone').textContent.includes('<i>.wav (15 B)')")
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
    choose_adapters(page, "alpha")
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
    choose_adapters(page, adapter)
    page.evaluate("document.querySelector('#answer').replaceChildren()")
    page.choose_files("#enrolment", enrolment)
    page.choose_files("#clip", test)
    page.click("#run")
    page.until("document.querySelector('#answer .decision') !== null")
    return page.picture("#answer .scale")


def test_compares_two_clips(page: Page, clips: tuple[Path, Path]) -> None:
    choose_adapters(page, "gamma")
    page.choose_files("#clip", clips[0])
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
    choose_adapters(page, "brief")
    page.choose_files("#clip", tmp_path / "long.wav")
    page.click("#run")
    shown_labels(page)
    told = page.evaluate("[...document.querySelectorAll('.column .note')].map(note => note.textContent)")
    assert "may be none of these labels" in told[0]
    assert told[1].startswith("Heard 0.00 to 0.64 s of 4.00 s")
    box = "document.querySelector('#answer .note .bar').getBoundingClientRect()"
    filled = "document.querySelector('#answer .note .fill').getBoundingClientRect()"
    assert page.evaluate(f"{filled}.width / {box}.width") == pytest.approx(0.16, abs=0.005)
    assert page.evaluate(f"{filled}.left - {box}.left") == 0
    live.http.delete("/v1/adapters/brief")


def test_a_clip_that_is_heard_whole_needs_no_word(page: Page, clips: tuple[Path, Path]) -> None:
    choose_adapters(page, "alpha")
    page.choose_files("#clip", clips[0])
    page.click("#run")
    shown_labels(page)
    assert page.evaluate("document.querySelectorAll('#answer .note').length") == 0


def test_too_little_speech_is_no_verdict(page: Page, live: Live, clips: tuple[Path, Path], tmp_path: Path) -> None:
    live.publish(tmp_path, "listening", task=TaskType.VERIFICATION, speech={})
    choose_adapters(page, "listening")
    page.choose_files("#enrolment", clips[0])
    page.choose_files("#clip", clips[0])
    page.click("#run")
    page.until("document.querySelector('#answer .decision') !== null")
    assert page.text("#answer .decision") == "Not enough speech to tell"
    assert "somebody speaks for 0.0 s and 0.0 s" in page.text("#answer")
    assert page.evaluate("document.querySelector('#answer .scale')") is None
    live.http.delete("/v1/adapters/listening")


@pytest.mark.parametrize("width", [320, 390])
def test_nothing_is_scrolled_sideways(page: Page, live: Live, clips: tuple[Path, Path], width: int) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=700, deviceScaleFactor=1, mobile=False)
    choose_adapters(page, "alpha", "gamma")
    page.choose_files("#clip", clips[0])
    page.choose_files("#enrolment", clips[0])
    ask(page)
    for view in ("", *VIEWS):
        if view:
            opened(page, live.url, view)
            page.until("document.querySelectorAll('#view h1').length === 1")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
        nameless = "[...document.querySelectorAll('button, input, select, a')].filter(one => one.offsetParent && "
        nameless += "!(one.ariaLabel || one.textContent.trim() || one.labels?.length)).map(one => one.outerHTML)"
        assert page.evaluate(nameless) == [], view
    page.call("Emulation.clearDeviceMetricsOverride")


VIEWS = ("try", "recordings", "speakers", "adapters", "adapter/alpha")


def test_asks_for_a_key(chromium: Page, tiny_ast_dir: Path, tmp_path: Path) -> None:
    """Kept for the tab alone until it is forgotten; what it may not do is disabled and says why."""
    settings = settings_for(tiny_ast_dir, tmp_path / "data", inference_keys="one", admin_keys="root")
    with running(settings) as service:
        service.http.headers["Authorization"] = "Bearer root"
        service.publish(tmp_path, "only")
        chromium.open(service.url)
        chromium.until("!document.querySelector('#key-section').hidden")
        for key, expected in (("wrong", "That key is not known"), ("one", "Ready")):
            chromium.evaluate(f"document.querySelector('#key').value = '{key}'")
            chromium.click("#key-form button")
            chromium.until(f"document.querySelector('#status').textContent === '{expected}'")
            assert chromium.evaluate("document.querySelector('#key-wrong').hidden") is (key == "one")
        assert chromium.evaluate("document.querySelector('#key-section').hidden")
        assert chromium.evaluate("document.cookie + localStorage.length + sessionStorage.length") == "01"
        opened(chromium, service.url, "adapters")
        chromium.until("document.querySelector('[data-name=only] button') !== null")
        assert chromium.evaluate("document.querySelector('[data-name=only] button').disabled")
        assert "lacks the scope write" in chromium.evaluate("document.querySelector('[data-name=only] button').title")
        chromium.click("#forget")
        chromium.until("!document.querySelector('#key-section').hidden")
        assert chromium.evaluate("sessionStorage.length") == 0
        chromium.open("about:blank")


def new_key(service: Live, data_dir: Path, *words: str) -> str:
    """A key that the command makes, once the running service knows it."""
    command = [sys.executable, "-m", "service", "keys", "create", *words, "--data-dir", str(data_dir)]
    token = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    bearer = {"Authorization": f"Bearer {token}"}
    soon(lambda: service.http.get("/v1/adapters", headers=bearer).status_code in (200, 403), seconds=30)
    return token


def test_a_key_that_only_infers_names_its_adapter(
    chromium: Page, tiny_ast_dir: Path, tmp_path: Path, clips: tuple[Path, Path]
) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data", admin_keys="root")) as service:
        service.http.headers["Authorization"] = "Bearer root"
        service.publish(tmp_path, "only")
        service.publish(tmp_path, "voice", task=TaskType.VERIFICATION)
        token = new_key(service, tmp_path / "data", "--scopes", "infer")
        chromium.open(service.url)
        chromium.until("!document.querySelector('#key-section').hidden")
        chromium.evaluate(f"document.querySelector('#key').value = '{token}'")
        chromium.click("#key-form button")
        chromium.until("document.querySelector('#status').textContent === 'Ready'")
        chromium.until("document.querySelector('#clip') !== null")
        chromium.choose_files("#clip", clips[0])
        chromium.click("#run")
        assert "Name the adapter first" in chromium.text("#answer")
        chromium.evaluate("document.querySelector('#adapter-name').value = 'only@1'")
        chromium.click("#adapter-add")
        chromium.click("#run")
        assert set(shown_labels(chromium)) <= {"dog", "rain", "clock", "siren", "cat", "wind", "door"}
        chromium.click(".chip button")
        chromium.evaluate("document.querySelector('#adapter-name').value = 'voice'")
        chromium.click("#adapter-add")
        ask(chromium)
        assert "compares speakers" in chromium.text("#answer")
        chromium.choose_files("#enrolment", clips[0])
        ask(chromium)
        assert "Same speaker" in chromium.text("#answer")
        chromium.open("about:blank")


def test_a_key_of_one_request_a_second_sees_all_of_an_adapter(
    chromium: Page, tiny_ast_dir: Path, tmp_path: Path
) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data", admin_keys="root")) as service:
        service.http.headers["Authorization"] = "Bearer root"
        service.publish(tmp_path, "only")
        token = new_key(service, tmp_path / "data", "--scopes", "read", "--rate", "1/s")
        chromium.open(f"{service.url}/#/adapter/only")
        chromium.until("!document.querySelector('#key-section').hidden")
        chromium.evaluate(f"document.querySelector('#key').value = '{token}'")
        chromium.click("#key-form button")
        chromium.until(
            "document.querySelector('.history li') !== null && document.querySelector('#detail .facts') !== null"
        )
        assert chromium.evaluate("document.querySelectorAll('.problem').length") == 0
        chromium.evaluate("location.hash = '#/speakers'")
        chromium.until("document.querySelector('#view h1').textContent === 'Speakers'")
        assert "lacks the scope speakers" in chromium.text("#view .note")
        chromium.click("#forget")
        chromium.open("about:blank")


def test_a_frozen_server_is_told(page: Page, live: Live) -> None:
    """Within 10 s: 4 s may pass before the service is asked again, which is not waited for here."""
    assert live.loop is not None
    frozen, thawed = time.monotonic(), threading.Event()
    live.loop.call_soon_threadsafe(thawed.wait, 60)
    try:
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.until("document.querySelector('#status').textContent.includes('frozen')")
        assert page.in_sight("#gone")
        assert time.monotonic() - frozen < 10.0
    finally:
        thawed.set()
    page.until("document.querySelector('#status').textContent === 'Ready'")


def test_the_api_is_described(page: Page, live: Live) -> None:
    page.open(f"{live.url}/docs")
    page.until("document.querySelectorAll('.operation').length > 30")
    page.call("Emulation.setDeviceMetricsOverride", width=320, height=700, deviceScaleFactor=1, mobile=False)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.call("Emulation.clearDeviceMetricsOverride")
    assert "/v1/adapters/{name}/aliases/{alias}" in page.text("#groups")
    assert page.evaluate("document.querySelectorAll('#notice *').length") == 0


def test_a_recorder_of_the_browser_is_heard_live(page: Page) -> None:
    """A tone from the page itself, recorded by MediaRecorder and streamed until three windows have come back."""
    page.evaluate(
        """
        window.told = [];
        const audio = new AudioContext(), tone = audio.createOscillator(), out = audio.createMediaStreamDestination();
        tone.connect(out);
        tone.start();
        const recorder = new MediaRecorder(out.stream, {mimeType: "audio/webm;codecs=opus"});
        const stream = new WebSocket(`ws://${location.host}/v1/stream?adapter=alpha&hop=0.2`);
        stream.onopen = () => {
            stream.send(JSON.stringify({type: "start", format: "webm"}));
            recorder.start(100);
        };
        recorder.ondataavailable = async (event) => stream.send(await event.data.arrayBuffer());
        recorder.onstop = () => setTimeout(() => stream.send('{"type": "end"}'), 100);
        stream.onmessage = (event) => {
            told.push(JSON.parse(event.data));
            if (told.length === 4) recorder.stop();
        };
        audio.resume();
        """
    )
    page.until("told.length && ['done', 'error'].includes(told[told.length - 1].type)")
    told = page.evaluate("told")
    assert [one["type"] for one in told[:4]] == ["started", "window", "window", "window"]
    assert told[-1]["type"] == "done", told[-1]
