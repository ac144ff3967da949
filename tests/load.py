"""Mixed load over HTTP whose every answer is compared with a reference: what a soak runs for minutes."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import numpy as np
from numpy.typing import NDArray

from service.registry.bundle import BundleFiles

TOLERANCE: Final = 1e-4  # of the largest value: float32 over HTTP as decimal numbers, batches of other sizes
MORE_SECONDS: Final = 30.0
ALLOWED: Final = {"classify": {200}, "embed": {200}, "score": {200}, "deadline": {200, 504}}
LABELS: Final = ("dog", "rain", "clock", "siren", "cat", "wind", "door")  # of tests/bundles.py

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A registered adapter with one or two versions, and what each says of each clip."""

    name: str
    is_classifier: bool
    expected: dict[int, list[Values]]  # version -> clip -> probabilities [C] or embedding [E]


@dataclass(slots=True)
class Report:
    """What was asked, and what the server took for it."""

    asked: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    worst: float = 0.0  # largest difference, relative to the largest value
    samples: list[tuple[float, float, int, int]] = field(default_factory=list)  # seconds, MiB, handles, threads
    loads: int = 0  # adapters that were loaded into a slot

    def unanswered(self) -> list[str]:
        """Kinds of requests that were never answered, and always should be."""
        return [kind for kind in ALLOWED if not self.statuses[kind, 200] and kind != "deadline"]


class Load:
    """The clients: each step is one request of a kind drawn at random."""

    def __init__(self, http: httpx.AsyncClient, adapters: list[Adapter], clips: list[bytes], report: Report) -> None:
        self.http = http
        self.clips = clips
        self.report = report
        self.classifiers = [adapter for adapter in adapters if adapter.is_classifier]
        self.verifiers = [adapter for adapter in adapters if not adapter.is_classifier]

    def goes_on(self, ends: float) -> bool:
        """Whether there is time left, or a kind of request that a short run has not seen answered yet."""
        now = time.monotonic()
        return now < ends or (now < ends + MORE_SECONDS and bool(self.report.unanswered()))

    async def client(self, seed: int, ends: float) -> None:
        chance = random.Random(seed)
        steps = [(self.classify, 8), (self.embed, 2), (self.score, 2), (self.deadline, 1), (self.leave, 1)]
        kinds, weights = zip(*steps, strict=True)
        while self.goes_on(ends):
            step = chance.choices(kinds, weights)[0]
            try:
                await step(chance)
            except (httpx.HTTPError, KeyError) as error:  # no answer, or one that lacks what it should hold
                self.report.wrong.append(f"{step.__name__}: {error!r}")

    async def operator(self, seed: int, ends: float, uploads: list[BundleFiles]) -> None:
        """Writes: uploads and deletes an adapter, rolls `live`, loads and unloads."""
        chance = random.Random(seed)
        while self.goes_on(ends):
            adapter = chance.choice(self.classifiers)
            path = f"/v1/adapters/{adapter.name}"
            match chance.randrange(4):
                case 0:
                    bundle = chance.choice(uploads)
                    parts = {"config": bundle.config, "weights": bundle.weights}
                    await self.write("upload", "POST", "/v1/adapters/fleeting/versions", {200, 201}, files=parts)
                    await self.write("delete", "DELETE", "/v1/adapters/fleeting", {204})
                case 1:
                    version = {"version": chance.choice(list(adapter.expected))}
                    await self.write("roll", "PUT", f"{path}/aliases/live", {200}, json=version)
                case 2:
                    await self.write("load", "POST", f"{path}/load", {200})
                case 3:
                    await self.write("unload", "POST", f"{path}/unload", {200})
            await asyncio.sleep(chance.random() * 0.2)

    async def write(self, kind: str, method: str, path: str, allowed: set[int], **body: Any) -> None:
        answer = await self.http.request(method, path, **body)
        self.count(kind, answer, allowed)

    async def classify(self, chance: random.Random) -> None:
        adapters = chance.sample(self.classifiers, chance.choice((1, 1, 1, 2, 5)))
        clips = [chance.randrange(len(self.clips)) for _ in range(chance.choice((1, 1, 1, 3)))]
        answer = await self.ask("classify", adapters, clips, top_k=0)
        self.compare(answer, adapters, clips)

    async def embed(self, chance: random.Random) -> None:
        adapters, clips = chance.sample(self.verifiers, 2), [chance.randrange(len(self.clips))]
        self.compare(await self.ask("embed", adapters, clips), adapters, clips)

    async def score(self, chance: random.Random) -> None:
        adapter = chance.choice(self.verifiers)
        first, second = (chance.randrange(len(self.clips)) for _ in range(2))
        parts = [("enrolment", self.clips[first]), ("test", self.clips[second])]
        answer = await self.http.post("/v1/score", params={"adapter": adapter.name}, files=parts)
        if self.count("score", answer, ALLOWED["score"]):
            vectors = adapter.expected[answer.json()["version"]]
            self.differ(float(vectors[first] @ vectors[second]), answer.json()["score"], f"score by {adapter.name}")

    async def deadline(self, chance: random.Random) -> None:
        """A request that may be too late."""
        headers = {"X-Request-Timeout-Ms": str(chance.choice((1, 20, 100, 500, 2_000)))}
        adapters, clips = [chance.choice(self.classifiers)], [chance.randrange(len(self.clips))]
        self.compare(await self.ask("deadline", adapters, clips, headers, top_k=0), adapters, clips)

    async def leave(self, chance: random.Random) -> None:
        """A client that goes before its answer."""
        self.report.asked["leave"] += 1
        params = {"adapter": chance.choice(self.classifiers).name}
        asking = asyncio.ensure_future(self.http.post("/v1/classify", params=params, content=chance.choice(self.clips)))
        await asyncio.sleep(chance.random() * 0.03)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    async def ask(
        self, kind: str, adapters: list[Adapter], clips: list[int], headers: dict[str, str] | None = None, **params: int
    ) -> httpx.Response:
        answer = await self.http.post(
            "/v1/embed" if kind == "embed" else "/v1/classify",
            params={"adapter": [adapter.name for adapter in adapters], **params},
            files=[("audio", self.clips[clip]) for clip in clips],
            headers=headers,
        )
        self.count(kind, answer, ALLOWED[kind])
        return answer

    def count(self, kind: str, answer: httpx.Response, allowed: set[int]) -> bool:
        self.report.asked[kind] += 1
        self.report.statuses[kind, answer.status_code] += 1
        if answer.status_code not in allowed:
            self.report.wrong.append(f"{kind}: {answer.status_code} {answer.text[:300]}")
        return answer.status_code == 200

    def compare(self, answer: httpx.Response, adapters: list[Adapter], clips: list[int]) -> None:
        """Every value against the reference of the version that says it answered."""
        if answer.status_code != 200:
            return
        results = answer.json()["results"]
        asked = [(clip, adapter) for clip in clips for adapter in adapters]
        if [result["adapter"] for result in results] != [adapter.name for _, adapter in asked]:
            self.report.wrong.append(f"asked {[a.name for _, a in asked]}, got {results}")
            return
        for (clip, adapter), result in zip(asked, results, strict=True):
            expected = adapter.expected[result["version"]][clip]
            if adapter.is_classifier:
                got = {label["label"]: label["score"] for label in result["labels"]}
                self.differ(expected, [got[label] for label in LABELS], f"{adapter.name} on clip {clip}")
            else:
                self.differ(expected, result["embedding"], f"{adapter.name} on clip {clip}")

    def differ(self, expected: Any, got: Any, what: str) -> None:
        difference = float(np.max(np.abs(np.subtract(expected, got))) / max(float(np.max(np.abs(expected))), 1e-3))
        self.report.worst = max(self.report.worst, difference)
        if not difference <= TOLERANCE:
            self.report.wrong.append(f"{what} is off by {difference:.2e}")
