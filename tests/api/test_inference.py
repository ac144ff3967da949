"""Classify, embed and score over HTTP: shapes, orders, every refusal."""

import io
import json
import wave
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.model.spec import TaskType
from tests.api.live import Live, running, settings_for
from tests.synthesis import CONTAINERS, encode, noise, tone

Parts = list[tuple[str, tuple[str, bytes]]]
ONE_WINDOW = {"sampling_rate": 16000, "window_frames": 64, "windows": 1, "mean": -6.0, "std": 5.0}


def parts(*clips: bytes, name: str = "audio") -> Parts:
    return [(name, (f"{index}.wav", clip)) for index, clip in enumerate(clips)]


def refused(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["title"]
    assert problem["detail"]
    return answer.status_code, problem["code"]


def classify(live: Live, clip: bytes, query: str = "adapter=alpha", **options: Any) -> Any:
    answer = live.http.post(f"/v1/classify?{query}", content=clip, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_answer_has_the_contracts_fields(live: Live, clip: bytes) -> None:
    answer = classify(live, clip)
    assert answer.keys() == {"results", "audio"}
    assert answer["audio"] == [{"seconds": 1.5, "sampling_rate": 16000, "channels": 1}]
    (result,) = answer["results"]
    assert result.keys() == {"clip", "adapter", "version", "labels", "heard"}
    assert (result["clip"], result["adapter"], result["version"]) == (0, "alpha", 1)
    assert len(result["labels"]) == 5
    assert all(one.keys() == {"label", "score"} for one in result["labels"])
    scores = [one["score"] for one in result["labels"]]
    assert scores == sorted(scores, reverse=True)


def test_top_k(live: Live, clip: bytes) -> None:
    everything = classify(live, clip, "adapter=alpha&top_k=0")["results"][0]["labels"]
    assert len(everything) == 7
    assert sum(one["score"] for one in everything) == pytest.approx(1, abs=1e-5)
    assert classify(live, clip, "adapter=alpha&top_k=2")["results"][0]["labels"] == everything[:2]
    assert classify(live, clip, "adapter=alpha&top_k=99")["results"][0]["labels"] == everything


def test_a_temperature_flattens_the_scores(live: Live, clip: bytes, tmp_path: Path) -> None:
    """Twice the temperature halves what lies between the logarithms of two scores."""
    for name, fields in (("tepid", {}), ("warm", {"calibration": {"temperature": 2.0}})):
        live.publish(tmp_path, name, seed=5, input=ONE_WINDOW, **fields)
    tepid, warm = (
        {
            one["label"]: np.log(one["score"])
            for one in classify(live, clip, f"adapter={name}&top_k=0")["results"][0]["labels"]
        }
        for name in ("tepid", "warm")
    )
    first = next(iter(tepid))
    assert max(abs(value - tepid[first]) for value in tepid.values()) > 0.1
    for label, value in tepid.items():
        assert warm[label] - warm[first] == pytest.approx((value - tepid[first]) / 2, abs=1e-4)


def test_windows(live: Live, clip: bytes) -> None:
    """1.5 s in windows of 64 frames: two side by side and one flush with the end."""
    (result,) = classify(live, clip, "adapter=alpha&windows=true&top_k=0")["results"]
    windows = result["windows"]
    assert len(windows) == 3
    assert all(window.keys() == {"start", "end", "labels"} for window in windows)
    assert [window["start"] for window in windows] == sorted(window["start"] for window in windows)
    assert windows[0]["start"] == 0
    assert 1.45 < windows[-1]["end"] <= 1.5
    means: dict[str, list[float]] = {}
    for window in windows:
        for one in window["labels"]:
            means.setdefault(one["label"], []).append(one["score"])
    for one in result["labels"]:
        assert one["score"] == pytest.approx(np.mean(means[one["label"]]), abs=1e-6)


def test_clips_by_adapters_in_their_order(live: Live, clip: bytes, other_clip: bytes) -> None:
    query = "adapter=beta&adapter=alpha@1&adapter=alpha@live&adapter=beta&top_k=0"
    answer = live.http.post(f"/v1/classify?{query}", files=parts(clip, other_clip, clip)).json()
    asked = [(result["clip"], result["adapter"]) for result in answer["results"]]
    assert asked == [(c, a) for c in range(3) for a in ("beta", "alpha", "alpha", "beta")]
    assert [one["channels"] for one in answer["audio"]] == [1, 2, 1]
    by = [{one["label"]: one["score"] for one in result["labels"]} for result in answer["results"]]
    assert by[0] == pytest.approx(by[3], abs=1e-5)
    assert by[1] == pytest.approx(by[2], abs=1e-5)
    assert by[0] == pytest.approx(by[8], abs=1e-5)
    assert by[0] != pytest.approx(by[1], abs=1e-3)
    assert by[0] != pytest.approx(by[4], abs=1e-3)
    alone = classify(live, clip, "adapter=alpha&top_k=0")["results"][0]["labels"]
    assert {one["label"]: one["score"] for one in alone} == pytest.approx(by[1], abs=1e-5)


@pytest.mark.parametrize(
    "content_type",
    [None, "audio/wav", "application/octet-stream", "application/x-www-form-urlencoded", "application/json", "?"],
)
def test_a_raw_body_may_have_any_content_type(live: Live, clip: bytes, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert len(classify(live, clip, headers=headers)["results"]) == 1


def test_chunked_bodies(live: Live, clip: bytes) -> None:
    def pieces() -> Any:
        yield clip[:1000]
        yield clip[1000:]

    assert live.http.post("/v1/classify?adapter=alpha", content=pieces()).status_code == 200


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container(live: Live, container: Any) -> None:
    sound = encode(tone(1.0, rate=48_000, channels=2), 48_000, container)
    answer = classify(live, sound)
    assert answer["audio"][0]["seconds"] == pytest.approx(1.0, abs=0.1)
    assert answer["audio"][0]["sampling_rate"] == 48_000


def lying_wav() -> bytes:
    """A wav file that claims 1 Hz."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(1)
        file.writeframes(b"\x00\x01" * 16_000)
    return content.getvalue()


@pytest.mark.parametrize(
    "body",
    [
        b"just some text, and no audio at all in it",
        b"\x00" * 4096,
        encode(noise(1.0), 16_000, "flac")[:2000],
        lying_wav(),
        encode(np.full((16_000, 1), np.nan, np.float32), codec="pcm_f32le"),
        encode(noise(0.01)),
    ],
    ids=["text", "zeros", "truncated", "1 Hz", "NaN", "too short"],
)
def test_bad_audio_and_the_service_goes_on(live: Live, clip: bytes, body: bytes) -> None:
    answer = live.http.post("/v1/classify?adapter=alpha", files=parts(clip, body))
    assert refused(answer) == (422, "bad_audio")
    assert answer.json()["clip"] == 1
    classify(live, clip)


def test_empty_bodies(live: Live, clip: bytes) -> None:
    assert refused(live.http.post("/v1/classify?adapter=alpha")) == (422, "invalid_request")
    answer = live.http.post("/v1/classify?adapter=alpha", files=parts(clip, b""))
    assert refused(answer) == (422, "invalid_request")
    assert answer.json()["clip"] == 1
    boundary = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = live.http.post("/v1/classify?adapter=alpha", content=b"--x--\r\n", headers=boundary)
    assert refused(answer) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("adapter=nobody", 404, "unknown_adapter"),
        ("adapter=alpha@9", 404, "unknown_version"),
        ("adapter=alpha@canary", 404, "unknown_version"),
        ("adapter=gamma", 409, "wrong_task"),
        ("adapter=alpha&adapter=gamma", 409, "wrong_task"),
        ("", 422, "invalid_request"),
        ("adapter=alpha&top_k=-1", 422, "invalid_request"),
        ("adapter=alpha&top_k=many", 422, "invalid_request"),
        ("adapter=alpha&windows=perhaps", 422, "invalid_request"),
        ("&".join(["adapter=alpha"] * 9), 422, "invalid_request"),
    ],
)
def test_refusals_of_the_query(live: Live, clip: bytes, query: str, status: int, code: str) -> None:
    answer = live.http.post(f"/v1/classify?{query}", content=clip)
    assert refused(answer) == (status, code)
    if status in (404, 409):
        assert answer.json()["adapter"] == query.split("=")[-1]


def test_a_wrong_adapter_is_told_before_the_audio_is_read(live: Live) -> None:
    assert refused(live.http.post("/v1/classify?adapter=nobody", content=b"text")) == (404, "unknown_adapter")


def test_too_many_clips(live: Live, clip: bytes) -> None:
    answer = live.http.post("/v1/classify?adapter=alpha", files=parts(*[clip] * 9))
    assert refused(answer) == (422, "invalid_request")


def test_large_bodies(tiny_ast_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_ast_dir, tmp_path / "data", max_body_bytes=100_000, max_audio_seconds=2.0)
    with running(settings) as service:
        service.publish(tmp_path, "alpha")
        huge = bytes(3_000_000)
        announced = service.http.post("/v1/classify?adapter=alpha", content=huge)
        assert refused(announced) == (413, "payload_too_large")
        chunked = service.http.post("/v1/classify?adapter=alpha", content=iter([huge[:90_000], huge[:90_000]]))
        assert refused(chunked) == (413, "payload_too_large")
        in_parts = service.http.post("/v1/classify?adapter=alpha", files=parts(huge))
        assert refused(in_parts) == (413, "payload_too_large")
        long = service.http.post("/v1/classify?adapter=alpha", content=encode(noise(3.0), container="mp3"))
        assert refused(long) == (413, "audio_too_long")
        assert service.context.budget.held == 0
        assert service.http.post("/v1/classify?adapter=alpha", content=encode(noise(1.0))).status_code == 200


def test_embeddings(live: Live, clip: bytes, other_clip: bytes) -> None:
    answer = live.http.post("/v1/embed?adapter=gamma", files=parts(clip, other_clip)).json()
    assert answer.keys() == {"results", "audio"}
    assert len(answer["audio"]) == 2
    for index, result in enumerate(answer["results"]):
        assert result.keys() == {"clip", "adapter", "version", "embedding", "speech_seconds", "heard"}
        assert result["speech_seconds"] == 0.0
        assert (result["clip"], result["adapter"], result["version"]) == (index, "gamma", 1)
        assert len(result["embedding"]) == 6
        assert np.linalg.norm(result["embedding"]) == pytest.approx(1, abs=1e-5)
    assert refused(live.http.post("/v1/embed?adapter=alpha", content=clip)) == (409, "wrong_task")


def test_scores_of_clips_and_of_their_embeddings_agree(live: Live, clip: bytes, other_clip: bytes) -> None:
    files = parts(clip, other_clip, name="enrolment") + parts(clip, name="test")
    answer = live.http.post("/v1/score?adapter=gamma", files=files).json()
    keys = {"adapter", "version", "score", "threshold", "decision", "log_likelihood_ratio", "speech_seconds"}
    assert answer.keys() == keys
    assert answer.pop("speech_seconds") == {"enrolment": 0.0, "test": 0.0}
    assert (answer["adapter"], answer["version"], answer["threshold"]) == ("gamma", 1, 0.25)
    assert answer["decision"] == ("accept" if answer["score"] >= 0.25 else "reject")
    assert answer["log_likelihood_ratio"] == pytest.approx(8 * answer["score"] - 2)

    embedded = live.http.post("/v1/embed?adapter=gamma", files=parts(clip, other_clip)).json()["results"]
    vectors = [result["embedding"] for result in embedded]
    trial = {"enrolment": vectors, "test": vectors[0]}
    again = live.http.post("/v1/score?adapter=gamma", json=trial).json()
    assert again.keys() == keys
    assert again["speech_seconds"] is None
    assert {key: again[key] for key in answer} == pytest.approx(answer, abs=1e-5)
    curled = live.http.post(
        "/v1/score?adapter=gamma",
        content=json.dumps(trial),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert curled.json() == again


def test_a_clip_is_its_own_speaker(live: Live, clip: bytes) -> None:
    files = parts(clip, name="enrolment") + parts(clip, name="test")
    answer = live.http.post("/v1/score?adapter=gamma", files=files).json()
    assert answer["score"] == pytest.approx(1, abs=1e-5)
    assert answer["decision"] == "accept"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"enrolment": [[1, 2]], "test": [1, 2]}',
        b'{"enrolment": [], "test": [1, 2, 3, 4, 5, 6]}',
        b'{"enrolment": [[0, 0, 0, 0, 0, 0]], "test": [1, 2, 3, 4, 5, 6]}',
        b'{"enrolment": [[1, 2, 3, 4, 5, NaN]], "test": [1, 2, 3, 4, 5, 6]}',
        b'{"enrolment": [[1, 2, 3, 4, 5, 1e308]], "test": [1e308, 1e308, 1e308, 4, 5, 6]}',
        b'{"enrolment": [["a", 2, 3, 4, 5, 6]], "test": [1, 2, 3, 4, 5, 6]}',
        b'{"enrolment": [[1, 2, 3, 4, 5, 6]], "test": [1, 2, 3, 4, 5, 6], "more": 1}',
        b'{"enrolment": ' + b"[" * 100_000 + b"]" * 100_000 + b', "test": [1]}',
    ],
    ids=["empty", "broken", "list", "dimension", "none", "zero", "NaN", "overflow", "text", "extra", "deep"],
)
def test_bad_embeddings(live: Live, body: bytes) -> None:
    answer = live.http.post("/v1/score?adapter=gamma", content=body, headers={"Content-Type": "application/json"})
    assert refused(answer) == (422, "invalid_request")
    assert len(answer.content) < 2000


def test_huge_json(live: Live) -> None:
    body = b'{"enrolment": [[' + b"1," * 3_000_000 + b"1]]}"
    assert refused(live.http.post("/v1/score?adapter=gamma", content=body)) == (413, "payload_too_large")


def test_a_score_needs_a_whole_trial(live: Live, clip: bytes) -> None:
    url = "/v1/score?adapter=gamma"
    for files in (parts(clip, name="test"), parts(clip, name="enrolment"), parts(clip, clip, name="test")):
        assert refused(live.http.post(url, files=files)) == (422, "invalid_request")
    files = parts(clip, b"text", name="enrolment") + parts(clip, name="test")
    answer = live.http.post(url, files=files)
    assert refused(answer) == (422, "bad_audio")
    assert answer.json()["clip"] == 1
    assert refused(live.http.post(f"{url}&adapter=gamma", files=files)) == (422, "invalid_request")
    assert refused(live.http.post("/v1/score?adapter=alpha", files=files)) == (409, "wrong_task")


def test_wav2vec2_is_served_too(tiny_wav2vec2_dir: Path, tmp_path: Path, clip: bytes) -> None:
    with running(settings_for(tiny_wav2vec2_dir, tmp_path / "data")) as service:
        service.publish(tmp_path, "words", adapter_residual=True)
        service.publish(tmp_path, "voices", task=TaskType.VERIFICATION)
        assert service.http.get("/v1/backbone").json()["model_type"] == "wav2vec2"
        assert len(classify(service, clip, "adapter=words")["results"]) == 1
        files = parts(clip, name="enrolment") + parts(clip, name="test")
        assert service.http.post("/v1/score?adapter=voices", files=files).json()["decision"] == "accept"
