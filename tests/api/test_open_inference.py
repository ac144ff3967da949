"""The Open Inference Protocol answers what /v1 answers, in its own tensors and its own errors."""

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.api.live import Live
from tests.bundles import random_bundle
from tests.synthesis import encode, tone

Json = dict[str, Any]


def packed(*clips: bytes) -> Json:
    data = [base64.b64encode(clip).decode() for clip in clips]
    return {"name": "audio", "datatype": "BYTES", "shape": [len(clips)], "data": data}


def infer(live: Live, tensor: Json, path: str = "alpha", **members: Any) -> httpx.Response:
    return live.http.post(f"/v2/models/{path}/infer", json={"inputs": [tensor], **members})


def tensors(answer: httpx.Response) -> dict[str, Json]:
    assert answer.status_code == 200, answer.text
    return {tensor["name"]: tensor for tensor in answer.json()["outputs"]}


def table(tensor: Json) -> np.ndarray[Any, Any]:
    assert tensor["datatype"] == "FP32"
    return np.array(tensor["data"]).reshape(tensor["shape"])


def classified(live: Live, clip: bytes, adapter: str = "alpha") -> dict[str, float]:
    answer = live.http.post(f"/v1/classify?adapter={adapter}&top_k=0", content=clip).json()
    return {one["label"]: one["score"] for one in answer["results"][0]["labels"]}


def test_health_and_metadata(live: Live) -> None:
    assert live.http.get("/v2/health/live").json() == {"live": True}
    assert live.http.get("/v2/health/ready").json() == {"ready": True}
    server = live.http.get("/v2").json()
    assert server["name"] == "ipet-serve"
    assert {"binary_tensor_data", "classification", "model_repository", "statistics"} <= set(server["extensions"])
    model = live.http.get("/v2/models/alpha").json()
    assert (model["name"], model["platform"]) == ("alpha", "ipet")
    assert "1" in model["versions"]
    assert model["inputs"] == [{"name": "audio", "datatype": "BYTES", "shape": [-1]}]
    assert model["outputs"] == [
        {"name": "scores", "datatype": "FP32", "shape": [-1, 7]},
        {"name": "labels", "datatype": "BYTES", "shape": [7]},
    ]
    speaker = live.http.get("/v2/models/gamma/versions/1").json()
    assert speaker["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 6]}]
    assert live.http.get("/v2/models/alpha/ready").json() == {"name": "alpha", "ready": True}
    assert live.http.get("/v2/models/alpha/versions/1/ready").json() == {"name": "alpha", "ready": True}


@pytest.mark.parametrize("path", ["alpha", "alpha/versions/1", "alpha@live", "alpha/versions/live"])
def test_scores_of_files(live: Live, clip: bytes, other_clip: bytes, path: str) -> None:
    answer = infer(live, packed(clip, other_clip), path, id="mine")
    assert {key: answer.json()[key] for key in ("model_name", "model_version", "id")} == {
        "model_name": path.partition("/")[0],
        "model_version": "1",
        "id": "mine",
    }
    found = tensors(answer)
    labels = found["labels"]["data"]
    assert found["labels"]["shape"] == [7]
    for row, sound in zip(table(found["scores"]), (clip, other_clip), strict=True):
        assert dict(zip(labels, row, strict=True)) == pytest.approx(classified(live, sound), abs=1e-5)


@pytest.mark.parametrize("rate", [None, 16_000, 8_000])
def test_scores_of_samples(live: Live, rate: int | None) -> None:
    """FP32 samples, flat or in rows, are heard as the wav file that holds them."""
    samples = tone(1.5, rate=rate or 16_000)[:, 0]
    expected = classified(live, encode(samples[:, None], rate or 16_000, codec="pcm_f32le"))
    parameters = {} if rate is None else {"parameters": {"sampling_rate": rate}}
    for shape, data in (([len(samples)], samples.tolist()), ([2, len(samples)], [samples.tolist()] * 2)):
        tensor = {"name": "audio", "datatype": "FP32", "shape": shape, "data": data, **parameters}
        found = tensors(infer(live, tensor))
        for row in table(found["scores"]):
            assert dict(zip(found["labels"]["data"], row, strict=True)) == pytest.approx(expected, abs=1e-5)


def test_the_rate_of_a_request_is_its_inputs_unless_they_have_their_own(live: Live) -> None:
    samples = tone(1.5, rate=8_000)[:, 0]
    expected = classified(live, encode(samples[:, None], 8_000, codec="pcm_f32le"))
    tensor = {"name": "audio", "datatype": "FP32", "shape": [len(samples)], "data": samples.tolist()}
    told = {"sampling_rate": 8_000}
    for own, of_request in ((None, told), (told, {"sampling_rate": 44_100}), (told, None)):
        members = {"parameters": of_request} if of_request else {}
        found = tensors(infer(live, tensor | ({"parameters": own} if own else {}), **members))
        row = table(found["scores"])[0]
        assert dict(zip(found["labels"]["data"], row, strict=True)) == pytest.approx(expected, abs=1e-5)
    wrong = infer(live, tensor, parameters={"sampling_rate": "8 kHz"})
    assert refused(wrong) == (422, "invalid_request")
    assert "parameters.sampling_rate" in wrong.json()["detail"]


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_files_in_rows(live: Live, clip: bytes, other_clip: bytes, shape: list[int]) -> None:
    flat = packed(clip, other_clip)
    nested = flat | {"shape": shape, "data": [[one] for one in flat["data"]]}
    assert table(tensors(infer(live, nested))["scores"]) == pytest.approx(table(tensors(infer(live, flat))["scores"]))


@pytest.mark.parametrize("field", ["model", "inputs.0.sampling_rate", "outputs.0.binary"])
def test_unknown_fields_are_named(live: Live, clip: bytes, field: str) -> None:
    body: Json = {"inputs": [packed(clip)], "outputs": [{"name": "scores"}]}
    place, name = (body, field) if "." not in field else (body[field.partition(".")[0]][0], field.rpartition(".")[2])
    place[name] = 1
    answer = live.http.post("/v2/models/alpha/infer", json=body)
    assert refused(answer) == (422, "invalid_request")
    assert f"body.{field}" in answer.json()["detail"]


def test_embeddings(live: Live, clip: bytes) -> None:
    found = tensors(infer(live, packed(clip), "gamma"))
    assert found.keys() == {"embedding"}
    expected = live.http.post("/v1/embed?adapter=gamma", content=clip).json()["results"][0]["embedding"]
    assert table(found["embedding"]) == pytest.approx(np.array([expected]), abs=1e-5)


def test_outputs_as_asked(live: Live, clip: bytes) -> None:
    assert tensors(infer(live, packed(clip), outputs=[{"name": "scores"}])).keys() == {"scores"}


def test_an_adapter_that_cannot_run_is_not_ready(live: Live, tmp_path: Path) -> None:
    files = random_bundle(tmp_path, live.backbone, "broken")
    version = live.upload(files, "broken").json()["version"]
    found = live.context.runtime.registry.version("broken", version)
    live.context.runtime.registry.weights_path(found).write_bytes(b"damaged")
    assert refused(infer(live, packed(encode(tone(1.0))), "broken")) == (503, "adapter_failed")
    assert refused(live.http.get("/v2/models/broken/ready")) == (503, "adapter_failed")


def refused(answer: httpx.Response) -> tuple[int, str]:
    problem = answer.json()
    assert problem["error"] == problem["detail"]
    return answer.status_code, problem["code"]


FP32: Json = {"name": "audio", "datatype": "FP32"}


@pytest.mark.parametrize(
    ("tensor", "code"),
    [
        (packed(), "invalid_request"),
        (packed(b""), "invalid_request"),
        (packed(b"text"), "bad_audio"),
        (packed(b"text") | {"data": ["?"]}, "invalid_request"),
        (packed(b"text") | {"data": [1]}, "invalid_request"),
        (packed(b"text") | {"shape": [2]}, "invalid_request"),
        (packed(b"text") | {"shape": [1, 2]}, "invalid_request"),
        (packed(b"text") | {"shape": [-1]}, "invalid_request"),
        (packed(b"text") | {"datatype": "INT8"}, "invalid_request"),
        (packed(b"text") | {"name": "image"}, "invalid_request"),
        (packed(*[b"text"] * 9), "invalid_request"),
        (FP32 | {"shape": [3], "data": [0.0, 0.1]}, "invalid_request"),
        (FP32 | {"shape": [2], "data": ["0", "1"]}, "invalid_request"),
        (FP32 | {"shape": [2, 2], "data": [[0.0, 1.0], [2.0]]}, "invalid_request"),
        (FP32 | {"shape": [1], "data": [10**400]}, "invalid_request"),
        (FP32 | {"shape": [1_000_000_000_000], "data": [0.0]}, "invalid_request"),
        (FP32 | {"shape": [2], "data": [0.0, 0.1]}, "bad_audio"),
        (FP32 | {"shape": [800], "data": [1e300] * 800}, "bad_audio"),
        (FP32 | {"shape": [800], "data": [0] * 800, "parameters": {"sampling_rate": 1}}, "bad_audio"),
        (FP32 | {"shape": [800], "data": [0] * 800, "parameters": {"sampling_rate": "16 kHz"}}, "invalid_request"),
    ],
)
def test_bad_tensors(live: Live, tensor: Json, code: str) -> None:
    assert refused(infer(live, tensor)) == (422, code)
    assert live.context.budget.held == 0


def test_other_refusals(live: Live, clip: bytes) -> None:
    assert refused(infer(live, packed(clip), "nobody")) == (404, "unknown_adapter")
    assert refused(infer(live, packed(clip), "alpha/versions/9")) == (404, "unknown_version")
    assert refused(infer(live, packed(clip), outputs=[{"name": "logits"}])) == (422, "invalid_request")
    assert refused(live.http.get("/v2/models/nobody")) == (404, "unknown_adapter")
    assert refused(live.http.get("/v2/nothing")) == (404, "not_found")
    url = "/v2/models/alpha/infer"
    assert refused(live.http.post(url)) == (422, "invalid_request")
    body = json.dumps({"inputs": [packed(clip)]})
    binary = live.http.post(url, content=body, headers={"Inference-Header-Content-Length": "10"})
    assert refused(binary) == (422, "invalid_request")
    assert refused(live.http.post(url, content=b" " * 17_000_000)) == (413, "payload_too_large")
