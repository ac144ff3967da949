"""Hugging Face's own client asks the service, without a line changed in it."""

import base64
import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import httpx
import pytest

from service.model.spec import TaskType
from tests.api.live import Live, running, settings_for
from tests.synthesis import encode, noise

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


def test_the_reason_of_every_refusal_reaches_the_client(tiny_ast_dir: Path, tmp_path: Path, clip: bytes) -> None:
    """401, 404, 409: what the hub's package shows of an answer is its member `error`."""
    with running(settings_for(tiny_ast_dir, tmp_path / "data", inference_keys="one", admin_keys="root")) as service:
        service.http.headers["Authorization"] = "Bearer root"
        service.publish(tmp_path, "voice", task=TaskType.VERIFICATION)
        refusals = {("nobody", "one"): "no adapter", ("voice", "one"): "is for", ("voice", "other"): "key"}
        for (adapter, key), reason in refusals.items():
            client = InferenceClient(model=f"{service.url}/v1/huggingface/{adapter}", token=key)
            with pytest.raises(HfHubHTTPError) as raised:
                client.audio_classification(clip)
            problem = raised.value.response.json()
            assert problem["error"] == problem["detail"]
            assert reason in str(raised.value)


@pytest.mark.parametrize(
    "parameters", [{"top_k": None}, {"top_k": 0}, {"top_k": None, "function_to_apply": None}], ids=str
)
def test_null_is_all_labels_as_in_a_pipeline(live: Live, clip: bytes, parameters: dict[str, object]) -> None:
    body = {"inputs": base64.b64encode(clip).decode(), "parameters": parameters}
    assert len(live.http.post("/v1/huggingface/alpha", json=body).json()) == 7
    assert len(live.http.post("/v1/huggingface/alpha", json=body | {"parameters": None}).json()) == 5


def written(content: bytes) -> dict[str, str]:
    """Base64 of `content` as different programs write it."""
    plain = base64.b64encode(content).decode()
    return {
        "plain": plain,
        "lines": base64.encodebytes(content).decode(),
        "lines of mail": "\r\n".join(plain[i : i + 64] for i in range(0, len(plain), 64)),
        "data URL": f"data:audio/wav;base64,{plain}",
        "data URL with parameters": f"data:audio/ogg;codecs=opus;base64,{plain}",
        "spaces": " ".join(plain[i : i + 76] for i in range(0, len(plain), 76)),
    }


@pytest.mark.parametrize("form", list(written(b"")))
@pytest.mark.parametrize("seconds", [0.03, 12.0])  # short enough to be parsed, and long enough to be set aside
def test_base64_as_programs_write_it(live: Live, form: str, seconds: float) -> None:
    clip = encode(noise(seconds, seed=3))
    answer = live.http.post("/v1/huggingface/alpha", json={"inputs": written(clip)[form]})
    assert answer.status_code == 200, answer.text
    assert [(one["label"], one["score"]) for one in answer.json()] == told(live, clip, "adapter=alpha")


@pytest.mark.parametrize(
    "inputs", ["data:audio/wav,RIFF", "data:;base64", "data:" + "a" * 300 + ";base64,AAAA", "data:"]
)
def test_other_urls_are_refused(live: Live, inputs: str) -> None:
    assert refused(live.http.post("/v1/huggingface/alpha", json={"inputs": inputs})) == (422, "invalid_request")


SCRIPT = """
import { InferenceClient } from "@huggingface/inference";
import { readFileSync } from "node:fs";
const [url, path] = process.argv.slice(2);
const inputs = new Blob([readFileSync(path)]);
const client = new InferenceClient("hf_any").endpoint(url);
const told = [await client.audioClassification({ data: inputs })];
told.push(await client.audioClassification({ inputs, parameters: { top_k: 2 } }));
const refused = await client.audioClassification({ data: new Blob(["text"]) }).catch((error) => error.message);
console.log(JSON.stringify({ told, refused }));
"""
MODULES = Path(os.environ.get("NODE_PATH", "node_modules"))


@pytest.mark.skipif(
    shutil.which("node") is None or not (MODULES / "@huggingface/inference").is_dir(),
    reason="no node, or no @huggingface/inference: npm install @huggingface/inference; NODE_PATH=.../node_modules",
)
def test_the_client_of_javascript(live: Live, clip: bytes, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(MODULES.resolve())  # modules are looked for beside the script
    (tmp_path / "ask.mjs").write_text(SCRIPT)
    (tmp_path / "clip.wav").write_bytes(clip)
    words = ["node", tmp_path / "ask.mjs", f"{live.url}/v1/huggingface/alpha", tmp_path / "clip.wav"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answered = json.loads(done.stdout)
    for answer in answered["told"]:  # it sends the bytes alone, whatever its parameters say
        assert [(one["label"], one["score"]) for one in answer] == told(live, clip, "adapter=alpha")
    assert "no audio file that is accepted" in answered["refused"]


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
