"""Hugging Face's own client asks the service, without a line changed in it."""

import base64
import warnings
from pathlib import Path

import httpx
import pytest

from tests.api.live import Live

with warnings.catch_warnings():  # what the hub's package says about itself while it is imported is not ours
    warnings.simplefilter("ignore")
    from huggingface_hub import InferenceClient, constants
    from huggingface_hub.errors import HfHubHTTPError


@pytest.fixture(autouse=True)
def _allowed_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests keep the hub's package offline; here it may ask, and asks loopback only."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def asking(live: Live, adapter: str) -> InferenceClient:
    return InferenceClient(model=f"{live.url}/v1/huggingface/{adapter}")


def told(live: Live, clip: bytes, query: str) -> list[tuple[str, float]]:
    """What /v1/classify answers."""
    answer = live.http.post(f"/v1/classify?{query}", content=clip).json()
    return [(one["label"], one["score"]) for one in answer["results"][0]["labels"]]


@pytest.mark.parametrize("adapter", ["alpha", "alpha@1", "alpha@live"])
def test_audio_classification(live: Live, clip: bytes, tmp_path: Path, adapter: str) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(clip)
    expected = dict(told(live, clip, "adapter=alpha"))
    for audio in (clip, str(path)):
        elements = asking(live, adapter).audio_classification(audio)
        assert {one.label: one.score for one in elements} == pytest.approx(expected, abs=1e-6)
        assert [one.score for one in elements] == sorted(expected.values(), reverse=True)


@pytest.mark.parametrize("top_k", [1, 3, 99])
def test_parameters_travel_as_json(live: Live, clip: bytes, top_k: int) -> None:
    elements = asking(live, "beta").audio_classification(clip, top_k=top_k, function_to_apply="softmax")
    expected = told(live, clip, f"adapter=beta&top_k={top_k}")
    assert [one.label for one in elements] == [label for label, _ in expected]


def refused(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def test_refusals_reach_the_client(live: Live, clip: bytes) -> None:
    with pytest.raises(HfHubHTTPError, match="no audio file that is accepted"):
        asking(live, "alpha").audio_classification(b"text")
    with pytest.raises(HfHubHTTPError, match="answers by softmax"):
        asking(live, "alpha").audio_classification(clip, function_to_apply="sigmoid")
    with pytest.raises(HfHubHTTPError, match="404"):
        asking(live, "nobody").audio_classification(clip)


@pytest.mark.parametrize(
    ("adapter", "body", "expected"),
    [
        ("gamma", b'{"inputs": ""}', (409, "wrong_task")),
        ("alpha", b"", (422, "invalid_request")),
        ("alpha", b"{", (422, "invalid_request")),
        ("alpha", b'{"inputs": ""}', (422, "invalid_request")),
        ("alpha", b'{"inputs": "no base64!"}', (422, "invalid_request")),
        ("alpha", b'{"inputs": "\xc3\xa4"}', (422, "invalid_request")),
        ("alpha", b'{"inputs": [1, 2]}', (422, "invalid_request")),
        ("alpha", b'{"inputs": "AAAA", "parameters": {"top_k": -1}}', (422, "invalid_request")),
        ("alpha", b'{"inputs": "%s"}' % base64.b64encode(b"text"), (422, "bad_audio")),
    ],
)
def test_bad_json(live: Live, adapter: str, body: bytes, expected: tuple[int, str]) -> None:
    headers = {"Content-Type": "application/json"}
    assert refused(live.http.post(f"/v1/huggingface/{adapter}", content=body, headers=headers)) == expected
    assert live.context.budget.held == 0


def test_one_clip_at_a_time(live: Live, clip: bytes) -> None:
    parts = [("audio", ("a.wav", clip)), ("audio", ("b.wav", clip))]
    assert len(live.http.post("/v1/huggingface/alpha", files=parts[:1]).json()) == 5
    assert refused(live.http.post("/v1/huggingface/alpha", files=parts)) == (422, "invalid_request")
