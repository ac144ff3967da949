"""`make demo`: every task over real HTTP on example audio, an upload, a hot swap and a rollback, in a table.

Starts a server of its own on a free port, with a data directory that is gone afterwards. Knows the client and the
files of this checkout, and nothing else of the service.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
from rich.console import Console
from rich.table import Table

from service.answers import Classification
from service.client import Client, ClientError
from tests.ports import free_port

ADAPTERS: Final = Path(__file__).parent.parent / "adapters"
EXAMPLES: Final = ADAPTERS / "examples"
BUNDLES = ADAPTERS / "bundles"
NEEDED: Final = ("sound-events", "keywords", "digits", "speaker", "music-style")
START_SECONDS: Final = 180.0  # until the backbone is loaded, on a slow and busy machine
STOP_SECONDS: Final = 30.0
SWAP_SECONDS: Final = 60.0  # until the requests in flight have seen a new version
NEWCOMER: Final = "digit-words"  # the adapter that the demo uploads
WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRIALS: Final = (  # what is compared, the clips, and what the shipped adapter decides
    ("score, the same voice", "speaker-ann-1.ogg", "speaker-ann-2.opus", "accept"),
    ("score, the same voice", "speaker-cora-1.ogg", "speaker-cora-2.m4a", "accept"),
    ("score, another voice", "speaker-ann-1.ogg", "speaker-cora-1.ogg", "reject"),
    ("score, another voice", "speaker-ann-1.ogg", "speaker-brian-1.mp3", "reject"),
)
PEOPLE: Final = (  # of speakers: what is done, the call, the clip, what is told
    ("enrol", "POST", "/ann/enrolments?adapter=speaker", "speaker-ann-1.ogg", "status"),
    ("verify, the same voice", "POST", "/ann/verify?adapter=speaker", "speaker-ann-2.opus", "decision"),
    ("verify, another voice", "POST", "/ann/verify?adapter=speaker", "speaker-cora-1.ogg", "decision"),
    ("identify, somebody known", "POST", "/identify?adapter=speaker", "speaker-ann-1.ogg", "decision"),
    ("identify, a stranger", "POST", "/identify?adapter=speaker", "speaker-cora-1.ogg", "decision"),
    ("opt out", "POST", "/ann/opt-out", "", "status"),
)
TOLERANCE: Final = {"float32": 1e-4}  # between an answer alone and in a mixed batch, by the backbone's precision
COARSE: Final = 3e-2


class DemoError(Exception):
    """Something did not answer as it should; the message says what."""


@contextmanager
def server(directory: Path, key: str) -> Iterator[str]:
    """Runs `ipet serve` with everything it writes under `directory`; yields its URL once it is ready."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IPET_")}
    chosen = {name: os.environ[name] for name in ("IPET_BACKBONE", "IPET_DEVICE", "IPET_DTYPE") if name in os.environ}
    options = ["--port", str(port), "--data-dir", str(directory / "data"), "--adapters", str(BUNDLES)]
    log = directory / "server.log"
    with log.open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", *options],
            env={**kept, **chosen, "IPET_ADMIN_KEYS": key},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until_ready(url, running, log)
            yield url
        finally:
            running.terminate()
            try:
                running.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def wait_until_ready(url: str, running: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when `/readyz` answers 200; raises DemoError when the server ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    with Client(url, timeout=5.0) as client:
        while time.monotonic() < deadline and running.poll() is None:
            try:
                client.ready()
            except ClientError:
                time.sleep(0.2)
            else:
                return
    raise DemoError(f"the server did not become ready:\n{log.read_text(errors='replace')[-3000:]}")


@dataclass(slots=True)
class Traffic:
    """Requests to one adapter, one after the other in a thread of its own, until told to stop."""

    url: str
    key: str
    versions: Counter[int] = field(default_factory=Counter)  # answers by version
    mixed_up: int = 0  # answers whose label is not of the version that they name
    errors: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with Client(self.url, self.key) as client:
            while not self.stopped.is_set():
                try:
                    result = client.classify(EXAMPLES / "digit-three.wav", NEWCOMER, top_k=1)["results"][0]
                except ClientError as error:
                    self.errors.append(str(error))
                    self.stopped.wait(0.1)
                    continue
                self.versions[result["version"]] += 1
                self.mixed_up += (result["labels"][0]["label"] in WORDS) != (result["version"] == 2)

    def wait_for(self, version: int, since: int) -> None:
        """Returns when `version` has answered more than `since` times."""
        deadline = time.monotonic() + SWAP_SECONDS
        while self.versions[version] <= since:
            if time.monotonic() > deadline or len(self.errors) > 100:
                raise DemoError(f"version {version} did not answer; errors: {self.errors[:3]}")
            time.sleep(0.01)


class Demo:
    """The steps, each a row of the table."""

    def __init__(self, client: Client, url: str, key: str, directory: Path) -> None:
        self.client = client
        self.url = url
        self.key = key
        self.directory = directory
        self.table = Table("what", "audio", "adapter", "answer", "ms", title="ipet-serve, over HTTP")

    def row(self, what: str, audio: str, adapter: str, answer: str, seconds: float | None = None) -> None:
        self.table.add_row(what, audio, adapter, answer, "" if seconds is None else f"{1000 * seconds:.0f}")

    def classify(self, adapter: str, *files: str) -> None:
        for file in files:
            begin = time.perf_counter()
            answer = self.client.classify(EXAMPLES / file, adapter, top_k=2)
            self.row("classify", file, adapter, best(answer["results"][0]), time.perf_counter() - begin)

    def several(self, file: str, *adapters: str) -> None:
        """One clip, several adapters in one request; each answer is what the adapter says alone."""
        begin = time.perf_counter()
        together = self.client.classify(EXAMPLES / file, list(adapters), top_k=0)["results"]
        seconds = time.perf_counter() - begin
        for adapter, result in zip(adapters, together, strict=True):
            alone = self.client.classify(EXAMPLES / file, adapter, top_k=0)["results"][0]
            self.same(f"{adapter} alone and in a mixed batch", alone, result)
            self.row("classify, one request", file, adapter, best(result), seconds)

    def same(self, what: str, first: Classification, second: Classification) -> None:
        """Two answers agree to the backbone's precision."""
        tolerance = TOLERANCE.get(self.client.backbone()["dtype"], COARSE)
        ours, theirs = scores(first), scores(second)
        apart = max(abs(score - theirs[label]) for label, score in ours.items())
        if apart > tolerance:
            raise DemoError(f"{what} differ by {apart:.2g}, more than {tolerance}")

    def speakers(self) -> None:
        begin = time.perf_counter()
        answer = self.client.embed(EXAMPLES / "speaker-ann-1.ogg", "speaker")
        size = len(answer["results"][0]["embedding"])
        self.row("embed", "speaker-ann-1.ogg", "speaker", f"{size} numbers", time.perf_counter() - begin)
        for what, enrolment, test, _ in TRIALS:
            begin = time.perf_counter()
            told = self.client.score(EXAMPLES / enrolment, EXAMPLES / test, "speaker")
            said = f"{told['decision']}: {told['score']:.3f} against {told['threshold']:.3f}"
            self.row(what, f"{enrolment} : {test}", "speaker", said, time.perf_counter() - begin)

    def people(self) -> None:
        """Enrols somebody, verifies and identifies them and a stranger, and lets them opt out."""
        speakers, headers = f"{self.url}/v1/speakers", {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=speakers, headers=headers, timeout=60) as http:
            for what, method, path, file, told in PEOPLE:
                begin = time.perf_counter()
                audio = (EXAMPLES / file).read_bytes() if file else None
                answer = http.request(method, path, content=audio)
                if answer.is_error:
                    raise DemoError(f"{what} was answered {answer.text}")
                said = f"{answer.json()[told]}, {path.partition('?')[0]}"
                self.row(what, file, "speaker" if file else "", said, time.perf_counter() - begin)

    def swap(self) -> None:
        """Uploads a newcomer, replaces it while requests run, and rolls back; no request may fail."""
        first = self.bundle("first", [str(digit) for digit in range(10)])
        second = self.bundle("second", list(WORDS))
        begin = time.perf_counter()
        uploaded = self.client.push(first)
        self.row("upload", "", NEWCOMER, f"version {uploaded['version']}, live", time.perf_counter() - begin)
        same = self.client.classify(EXAMPLES / "digit-three.wav", ["digits", NEWCOMER], top_k=0)["results"]
        self.same("one adapter's weights under two names", *same)
        traffic = Traffic(self.url, self.key)
        thread = threading.Thread(target=traffic.run, daemon=True)
        thread.start()
        try:
            traffic.wait_for(1, since=3)
            self.move("hot swap to", 2, traffic, lambda: self.client.push(second))
            traffic.wait_for(2, since=3)
            before = traffic.versions[1]
            self.move("rollback to", 1, traffic, lambda: self.client.activate(NEWCOMER, 1))
            traffic.wait_for(1, since=before + 3)
        finally:
            traffic.stopped.set()
            thread.join(STOP_SECONDS)
        if traffic.errors or traffic.mixed_up:
            raise DemoError(f"{traffic.mixed_up} answers of the wrong version; errors: {traffic.errors[:3]}")
        counted = ", ".join(f"v{version}: {count}" for version, count in sorted(traffic.versions.items()))
        self.row("meanwhile", "digit-three.wav", NEWCOMER, f"{counted}, failed: 0")

    def move(self, what: str, version: int, traffic: Traffic, change: Callable[[], object]) -> None:
        """Runs `change`, which makes `version` live, and asks once more: the answer must be of that version."""
        begin = time.perf_counter()
        change()
        seconds = time.perf_counter() - begin
        result = self.client.classify(EXAMPLES / "digit-three.wav", NEWCOMER, top_k=1)["results"][0]
        if result["version"] != version or (result["labels"][0]["label"] in WORDS) != (version == 2):
            raise DemoError(f"after the move to version {version} the answer is {result}")
        asked = sum(traffic.versions.values())
        self.row(f"{what} version {version}", "digit-three.wav", NEWCOMER, f"{best(result)} ({asked} asked)", seconds)

    def bundle(self, folder: str, labels: list[str]) -> Path:
        """A copy of the digits bundle under the newcomer's name, with `labels`."""
        copy = self.directory / folder
        shutil.copytree(BUNDLES / "digits", copy)
        config = json.loads((copy / "adapter_config.json").read_text())
        (copy / "adapter_config.json").write_text(json.dumps(config | {"name": NEWCOMER, "labels": labels}))
        return copy


def scores(result: Classification) -> dict[str, float]:
    return {item["label"]: item["score"] for item in result["labels"]}


def best(result: Classification) -> str:
    return ", ".join(f"{item['label']} {item['score']:.2f}" for item in result["labels"][:2])


def main() -> int:
    console = Console(width=None if sys.stdout.isatty() else 120)
    key = secrets.token_urlsafe(16)
    if missing := [name for name in NEEDED if not (BUNDLES / name).is_dir()]:
        console.print(f"the demo needs the bundles {', '.join(missing)} in {BUNDLES}", highlight=False)
        return 1
    with tempfile.TemporaryDirectory(prefix="ipet-demo-") as name:
        directory = Path(name)
        try:
            with (
                console.status("starting a server") as status,
                server(directory, key) as url,
                Client(url, key) as client,
            ):
                demo = Demo(client, url, key, directory)
                status.update("asking")
                demo.classify(
                    "sound-events", "rain.mp3", "clock-tick.ogg", "helicopter.m4a", "chainsaw.webm", "dog.flac"
                )
                demo.classify(
                    "keywords", "keyword-yes.wav", "keyword-left.flac", "keyword-zero.ogg", "keyword-three.mp3"
                )
                demo.classify("digits", "digit-three.wav", "digit-five.opus", "digit-seven.m4a", "digit-eight.flac")
                demo.classify("music-style", "music-dance.opus", "music-madrigal.opus")
                demo.several("digit-three.wav", "digits", "keywords", "sound-events")
                demo.speakers()
                demo.people()
                status.update("uploading, swapping, rolling back while requests run")
                demo.swap()
        except (DemoError, ClientError) as error:
            console.print(f"[bold red]the demo failed:[/] {error}", highlight=False)
            return 1
    console.print(demo.table)
    console.print(
        "The examples are synthesised, the adapters learned from recordings: a wrong answer here says little."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
