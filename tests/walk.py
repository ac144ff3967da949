"""Follows one request through the files of `service/`: `python -m tests.walk` prints what it meets.

A call is one `call` event of `sys.setprofile` in `service/`: of a function, and of each resumption of a coroutine or a
generator. Lambdas and comprehensions are left out, and functions that also run in two idle seconds.
"""

import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import service
from service.settings import Settings
from tests.api.live import Live, running
from tests.bundles import random_bundle
from tests.synthesis import encode, noise

ROOT = Path(service.__file__).parent
IDLE_SECONDS = 2.0
WARM, TRIES = 5, 8  # requests
CLIP = Path("adapters/examples/digit-eight.flac")
ADAPTER = "digits"


@dataclass(frozen=True, slots=True)
class Call:
    thread: str
    file: str  # under service/
    function: str


@dataclass(frozen=True, slots=True)
class Walk:
    """The calls of one request, in their order."""

    calls: Sequence[Call]

    @property
    def files(self) -> list[str]:
        """In the order in which the request met them."""
        return list(dict.fromkeys(call.file for call in self.calls))

    @property
    def switches(self) -> int:
        """How often another thread went on with the request: what a thread still does after the answer is not one."""
        threads = [call.thread for call in self.calls]
        last = max(at for at, call in enumerate(self.calls) if call.thread == threads[0])
        return sum(before != after for before, after in pairwise(threads[: last + 1]))

    def times(self, file: str, function: str) -> int:
        return sum((call.file, call.function) == (file, function) for call in self.calls)


class Recorder:
    """Notes calls while it is on; to be made before the threads that it is to see."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.is_on = False
        self._prefix = f"{ROOT}/"
        threading.setprofile(self._note)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        if self.is_on and event == "call" and frame.f_code.co_filename.startswith(self._prefix):
            code = frame.f_code
            if not code.co_name.startswith("<"):
                file = code.co_filename.removeprefix(self._prefix)
                self.calls.append(Call(threading.current_thread().name, file, code.co_qualname))

    def close(self) -> None:
        """Threads that begin from now on are not seen."""
        threading.setprofile(None)  # type: ignore[arg-type]

    @contextmanager
    def on(self) -> Iterator[list[Call]]:
        self.calls = []
        self.is_on = True
        try:
            yield self.calls
        finally:
            self.is_on = False

    def walk(self, ask: Callable[[], object]) -> Walk:
        """The calls of `ask`, once it is warm, less what an idle service does; the fewest of `TRIES`.

        A thread that still tidies up while the next goes on already looks like two switches more: those walks go last.
        """
        for _ in range(WARM):
            ask()
            time.sleep(0.1)
        with self.on() as idle:
            time.sleep(IDLE_SECONDS)
        always = {(call.file, call.function) for call in idle}
        walks = []
        for _ in range(TRIES):  # on a busy machine one may be waited for, and looked after, as most never are
            with self.on() as calls:
                ask()
                time.sleep(0.1)
            walks.append(Walk([call for call in calls if (call.file, call.function) not in always]))
        return min(walks, key=lambda walk: (walk.switches, len(walk.calls)))


def main() -> None:
    """Classifies the example clip with the embedded backbone, then uploads a bundle; `-v` prints every call."""
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as place:
        settings = Settings(data_dir=Path(place) / "data", adapters=Path("adapters/bundles"), port=0)
        with running(settings) as live:
            clip = CLIP.read_bytes()

            def ask() -> None:
                live.http.post(f"/v1/classify?adapter={ADAPTER}", content=clip).raise_for_status()

            show("classify", recorder.walk(ask))
            bundles = [random_bundle(Path(place), live.backbone, "new", seed) for seed in range(WARM + TRIES)]
            show("upload", recorder.walk(lambda: live.upload(bundles.pop(), "new").raise_for_status()))
    recorder.close()
    with tempfile.TemporaryDirectory() as place:  # without a recorder, which takes time itself
        settings = Settings(data_dir=Path(place) / "data", adapters=Path("adapters/bundles"), port=0)
        with running(settings) as live:
            told = ", ".join(f"{name} {value:.2f}" for name, value in processor_milliseconds(live).items())
            print(f"processor time of a 1.28 s wav, ms: {told}")


def processor_milliseconds(live: Live, requests: int = 300) -> dict[str, float]:
    """Processor time that one request takes, by thread, least of three runs; the forward apart."""
    clip, forward = encode(noise(1.28)), [0.0]
    backbone = live.context.runtime.engine.device._runner._backbone
    answer = backbone.answer

    def timed(*args: Any) -> Any:
        began = time.thread_time()
        try:
            return answer(*args)
        finally:
            forward[0] += time.thread_time() - began

    backbone.answer = timed  # type: ignore[method-assign]
    found: list[dict[str, float]] = []
    for _ in range(4):  # the first warms up
        forward[0], before = 0.0, _clocks()
        for _ in range(requests):
            live.http.post(f"/v1/classify?adapter={ADAPTER}", content=clip).raise_for_status()
        after = _clocks()
        by_thread = {name: 1000 * (after[name] - before.get(name, 0.0)) / requests for name in after}
        by_thread["device"] -= 1000 * forward[0] / requests
        by_thread["forward"] = 1000 * forward[0] / requests
        found.append(by_thread)
    least = min(found[1:], key=lambda one: one["server"])
    mine = {"loop": least["server"], "prepare": least["prepare"], "device": least["device"]}
    return mine | {"in all": sum(mine.values()), "forward": least["forward"]}


def _clocks() -> dict[str, float]:
    """Processor seconds of the threads so far; those of a pool together."""
    clocks: Counter[str] = Counter()
    for thread in threading.enumerate():
        if thread.ident is not None:
            clocks[thread.name.split("_")[0]] += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return clocks


def show(what: str, walk: Walk) -> None:
    print(f"{what}: {len(walk.calls)} calls in {len(walk.files)} files, {walk.switches} thread switches")
    by_file = Counter(call.file for call in walk.calls)
    for file in walk.files:
        print(f"  {by_file[file]:4d}  {file}")
    if "-v" in sys.argv:
        for call in walk.calls:
            print(f"    {call.thread:24s} {call.file:32s} {call.function}")


if __name__ == "__main__":
    main()
