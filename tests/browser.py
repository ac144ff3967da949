"""A headless Chromium, driven through its own debugging protocol. Knows nothing of the service."""

import base64
import io
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
from numpy.typing import NDArray
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-default-browser-check"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),  # a microphone that is allowed
    *("--remote-debugging-port=0", "--autoplay-policy=no-user-gesture-required"),
    *("--window-size=1100,1250", "--force-prefers-reduced-motion"),
)
WAIT_SECONDS = 60.0  # on a busy machine
KEYS = {"Tab": 9, "Enter": 13, " ": 32}  # and their codes


def installed() -> str | None:
    """Path of the Chromium that is installed, if one is."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page; `faults` gathers what its console had to complain about, broken content policies among them."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._calls = 0
        self.faults: list[str] = []
        self.asked: list[str] = []  # addresses of its requests
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        self._connection.send(json.dumps({"id": self._calls, "method": method, "params": params}))
        while True:
            message = json.loads(self._connection.recv(timeout=WAIT_SECONDS))
            if message.get("id") == self._calls:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        if event["method"] == "Runtime.exceptionThrown":
            self.faults.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
        if event["method"] == "Log.entryAdded":
            entry = params["entry"]
            if entry["level"] == "error" and entry["source"] != "network":  # a refused request: the page tells it
                self.faults.append(entry["text"])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """Waits for `expression` to be true, and answers it."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"not within {WAIT_SECONDS} s: {expression}\n{self.text('main')}"
            time.sleep(0.03)
        return value

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def picture(self, selector: str) -> NDArray[np.int16]:
        """What is drawn of an element, [height, width, rgb]."""
        box = "const box = document.querySelector({}).getBoundingClientRect();"
        where = "({{x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height, scale: 1}})"
        clip = self.evaluate(f"(() => {{ {box.format(json.dumps(selector))} return {where.format()} }})()")
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        with av.open(io.BytesIO(base64.b64decode(shot["data"])), format="png_pipe") as png:
            return next(png.decode(video=0)).to_ndarray(format="rgb24").astype(np.int16)

    def in_sight(self, selector: str) -> bool:
        """Whether all of an element is within the window as it is scrolled now."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        return bool(self.evaluate(f"(box => box.height > 0 && box.top >= 0 && box.bottom <= innerHeight)({box})"))

    def click(self, selector: str) -> None:
        self.until(f"document.querySelector({json.dumps(selector)}) !== null")
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def choose_files(self, selector: str, *paths: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def press(self, key: str) -> None:
        text = {"Enter": "\r", " ": " "}.get(key, "")
        pressed = {"key": key, "windowsVirtualKeyCode": KEYS[key], "text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **pressed)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=KEYS[key])


@contextmanager
def browsing(profile: Path, microphone: Path | None = None) -> Iterator[Page]:
    """A page of a browser with a profile of its own, which ends with it; its microphone hears the wav, looped."""
    program = installed()
    assert program is not None
    words = [program, *FLAGS, f"--user-data-dir={profile}"]
    words += [*([f"--use-file-for-fake-audio-capture={microphone}"] if microphone else []), "about:blank"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            port = _port(profile / "DevToolsActivePort")
            targets = httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=WAIT_SECONDS).json()
            address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
            with connect(address, max_size=None) as connection:
                yield Page(connection)
        finally:
            process.terminate()


def _port(file: Path) -> int:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (file.exists() and (lines := file.read_text().split())):
        assert time.monotonic() < deadline, "the browser did not start"
        time.sleep(0.05)
    return int(lines[0])
