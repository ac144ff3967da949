"""A service on the device: mixed requests equal each adapter alone, a batch waits no more than it must."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.api.live import Live, running, settings_for
from tests.gpu.conftest import CLASSIFIERS, SLOTS, VERIFIERS
from tests.gpu.synchronisation import synchronisations
from tests.synthesis import encode, noise

pytestmark = pytest.mark.gpu
Told = Callable[[str, object], None]
CLIPS = [encode(noise(seconds, seed=seed)) for seed, seconds in enumerate((0.4, 1.0, 2.3))]
SOUNDS = [f"sound-{i}" for i in range(CLASSIFIERS)]
VOICES = [f"voice-{i}" for i in range(VERIFIERS)]
EXACT = 1e-5
MOST_WAITS = 4  # of a batch: its inputs and its indices there, its outputs back, and one to spare


def scores(service: Live, clip: bytes, *adapters: str) -> dict[str, list[float]]:
    """Every label's score by each adapter, in the order of the labels' names."""
    answer = service.http.post("/v1/classify", params={"adapter": adapters, "top_k": 0}, content=clip)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return {one["adapter"]: [told["score"] for told in sorted(one["labels"], key=by_label)] for one in results}


def by_label(told: dict[str, Any]) -> str:
    return str(told["label"])


def voiceprint(service: Live, clip: bytes, adapter: str) -> list[float]:
    answer = service.http.post("/v1/embed", params={"adapter": adapter}, content=clip)
    assert answer.status_code == 200, answer.text
    embedding: list[float] = answer.json()["results"][0]["embedding"]
    return embedding


def test_it_runs_on_the_device(served: Live, device: str) -> None:
    assert served.http.get("/v1/backbone").json()["device"].startswith(device)


def test_mixed_requests_equal_each_adapter_alone(served: Live) -> None:
    """More adapters than slots, asked at once by many clients, in single requests and in mixed ones."""
    alone = {(i, name): scores(served, clip, name)[name] for i, clip in enumerate(CLIPS) for name in SOUNDS}
    prints = {(i, name): voiceprint(served, clip, name) for i, clip in enumerate(CLIPS) for name in VOICES}

    def ask(turn: int) -> None:
        i = turn % len(CLIPS)
        chosen = [SOUNDS[(turn + k) % CLASSIFIERS] for k in range(1 + turn % 4)]
        for name, found in scores(served, CLIPS[i], *chosen).items():
            assert found == pytest.approx(alone[i, name], abs=EXACT), (turn, name)
        voice = VOICES[turn % VERIFIERS]
        assert voiceprint(served, CLIPS[i], voice) == pytest.approx(prints[i, voice], abs=EXACT), (turn, voice)

    with ThreadPoolExecutor(12) as clients:
        list(clients.map(ask, range(60)))


def test_it_answers_as_the_cpu_does(served: Live, tiny_ast_dir: Path, tmp_path: Path) -> None:
    with running(settings_for(tiny_ast_dir, tmp_path / "data", device="cpu", adapter_slots=SLOTS)) as reference:
        for name in (SOUNDS[1], SOUNDS[2], VOICES[0]):
            files = {
                part: served.http.get(f"/v1/adapters/{name}/versions/1/{part}").content
                for part in ("config", "weights")
            }
            assert reference.http.post(f"/v1/adapters/{name}/versions", files=files).status_code == 201
        for clip in CLIPS:
            for name in (SOUNDS[1], SOUNDS[2]):
                assert scores(served, clip, name)[name] == pytest.approx(scores(reference, clip, name)[name], abs=EXACT)
            assert voiceprint(served, clip, VOICES[0]) == pytest.approx(
                voiceprint(reference, clip, VOICES[0]), abs=EXACT
            )


def test_a_batch_waits_for_the_device_the_same_whatever_adapters_it_has(
    served: Live, device: str, record_property: Told
) -> None:
    """One request, its adapters resident, is one batch: how often it waits does not grow with its adapters."""
    waits = []
    for count in (1, 2, SLOTS):
        scores(served, CLIPS[0], *SOUNDS[:count])  # all are resident, all lazy set-up is done
        with synchronisations(device) as found:
            scores(served, CLIPS[0], *SOUNDS[:count])
        waits.append(len(found))
    record_property("waits for the device, 1, 2 and 8 adapters", ", ".join(map(str, waits)))
    assert max(waits) <= MOST_WAITS, found
    assert waits[0] == waits[-1], found


def test_a_version_replaced_under_load_answers_for_itself(served: Live, tmp_path: Path) -> None:
    served.publish(tmp_path, "swapped", seed=1)
    first = scores(served, CLIPS[0], "swapped@1")["swapped"]
    with ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(ask_version, served) for _ in range(40)]
        served.publish(tmp_path, "swapped", seed=2)
        answers = [one.result() for one in asked]
    second = scores(served, CLIPS[0], "swapped@2")["swapped"]
    assert first != pytest.approx(second, abs=1e-3)
    for version, found in [*answers, ask_version(served)]:
        assert found == pytest.approx({1: first, 2: second}[version], abs=EXACT)
    assert ask_version(served)[0] == 2


def ask_version(service: Live) -> tuple[int, list[float]]:
    answer = service.http.post("/v1/classify", params={"adapter": "swapped", "top_k": 0}, content=CLIPS[0]).json()
    result = answer["results"][0]
    return result["version"], [told["score"] for told in sorted(result["labels"], key=by_label)]
