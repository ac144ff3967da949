"""Triton's own client asks the service, sync and async, without a line changed in it and in its defaults."""

import asyncio
import gzip
import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.model.spec import TaskType
from tests.api.live import Live, running, settings_for
from tests.synthesis import encode, noise, tone

with warnings.catch_warnings():  # what the package says about itself while it is imported is not ours
    warnings.simplefilter("ignore")
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
    from tritonclient.http.aio import InferenceServerClient as AsyncClient
    from tritonclient.utils import InferenceServerException

Json = dict[str, Any]


@pytest.fixture
def triton(live: Live) -> InferenceServerClient:
    return InferenceServerClient(live.url.removeprefix("http://"))


def files(*clips: bytes, binary: bool = True) -> InferInput:
    tensor = InferInput("audio", [len(clips)], "BYTES")
    return tensor.set_data_from_numpy(np.array(clips, dtype=np.object_), binary_data=binary)


def samples(values: np.ndarray[Any, Any], binary: bool = True) -> InferInput:
    tensor = InferInput("audio", list(values.shape), "FP32")
    return tensor.set_data_from_numpy(values.astype(np.float32), binary_data=binary)


def by_label(result: InferResult, row: int = 0) -> dict[str, float]:
    labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("labels")]
    return dict(zip(labels, result.as_numpy("scores")[row].tolist(), strict=True))


def classified(live: Live, clip: bytes, adapter: str = "alpha") -> dict[str, float]:
    answer = live.http.post(f"/v1/classify?adapter={adapter}&top_k=0", content=clip).json()
    return {one["label"]: one["score"] for one in answer["results"][0]["labels"]}


def test_health_and_metadata(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("alpha")
    assert triton.is_model_ready("alpha", "1")
    assert not triton.is_model_ready("nobody")
    assert triton.get_server_metadata()["name"] == "ipet-serve"
    assert triton.get_model_metadata("alpha", "1")["outputs"][0]["name"] == "scores"
    config = triton.get_model_config("alpha")
    assert config["input"] == [{"name": "audio", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert config["output"][0] == {"name": "scores", "data_type": "TYPE_FP32", "dims": [-1, 7]}
    assert triton.get_model_config("gamma", "1")["output"][0]["name"] == "embedding"


def test_files_in_its_defaults(live: Live, triton: InferenceServerClient, clip: bytes, other_clip: bytes) -> None:
    result = triton.infer("alpha", [files(clip, other_clip)], request_id="mine")
    assert result.get_response()["id"] == "mine"
    assert result.get_response()["outputs"][0]["parameters"]["binary_data_size"] == 2 * 7 * 4
    for row, sound in enumerate((clip, other_clip)):
        assert by_label(result, row) == pytest.approx(classified(live, sound), abs=1e-5)


def test_embeddings(live: Live, triton: InferenceServerClient, clip: bytes) -> None:
    embedding = triton.infer("gamma", [files(clip)], model_version="1").as_numpy("embedding")
    expected = live.http.post("/v1/embed?adapter=gamma", content=clip).json()["results"][0]["embedding"]
    assert embedding == pytest.approx(np.array([expected]), abs=1e-5)


@pytest.mark.parametrize("binary", [True, False])
def test_samples(live: Live, triton: InferenceServerClient, binary: bool) -> None:
    sound = tone(1.5, rate=8_000)[:, 0].astype(np.float32)
    expected = classified(live, encode(sound[:, None], 8_000, codec="pcm_f32le"))
    result = triton.infer("alpha", [samples(np.stack([sound, sound]), binary)], parameters={"sampling_rate": 8000})
    assert by_label(result, 1) == pytest.approx(expected, abs=1e-5)


def test_outputs_as_asked(live: Live, triton: InferenceServerClient, clip: bytes) -> None:
    expected = sorted(classified(live, clip).items(), key=lambda pair: -pair[1])
    for binary in (True, False):
        wanted = [InferRequestedOutput("scores", binary_data=binary, class_count=3)]
        result = triton.infer("alpha", [files(clip)], outputs=wanted).as_numpy("scores")
        assert result.shape == (1, 3)
        words = [word.decode() if isinstance(word, bytes) else word for word in result[0]]
        for word, (label, score) in zip(words, expected, strict=False):
            value, index, name = word.split(":")
            assert (name, float(value)) == (label, pytest.approx(score, abs=2e-6))
            assert triton.infer("alpha", [files(clip)]).as_numpy("labels")[int(index)] == label.encode()
    only = triton.infer("alpha", [files(clip)], outputs=[InferRequestedOutput("labels", binary_data=False)])
    assert only.as_numpy("scores") is None
    assert (
        len(
            triton.infer("alpha", [files(clip)], outputs=[InferRequestedOutput("scores", class_count=99)]).as_numpy(
                "scores"
            )[0]
        )
        == 7
    )


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed(live: Live, triton: InferenceServerClient, clip: bytes, algorithm: str) -> None:
    options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    result = triton.infer("alpha", [files(clip)], **options)
    assert by_label(result) == pytest.approx(classified(live, clip), abs=1e-5)


def test_async_of_the_sync_client(live: Live, clip: bytes) -> None:
    with InferenceServerClient(live.url.removeprefix("http://"), concurrency=4) as client:
        waiting = [client.async_infer(name, [files(clip)]) for name in ("alpha", "beta", "alpha")]
        found = [by_label(one.get_result()) for one in waiting]
    assert found[0] == pytest.approx(classified(live, clip, "alpha"), abs=1e-5)
    assert found[1] == pytest.approx(classified(live, clip, "beta"), abs=1e-5)


def test_the_async_client(live: Live, clip: bytes) -> None:
    async def ask() -> tuple[Json, list[InferResult], Json]:
        async with AsyncClient(live.url.removeprefix("http://")) as client:
            assert await client.is_model_ready("alpha")
            answers = await asyncio.gather(
                client.infer("alpha", [files(clip)]),
                client.infer("beta", [files(clip)], request_compression_algorithm="gzip"),
            )
            with pytest.raises(InferenceServerException, match="no adapter"):
                await client.infer("nobody", [files(clip)])
            index = await client.get_model_repository_index()
            return await client.get_model_metadata("alpha"), list(answers), index

    metadata, (first, second), index = asyncio.run(ask())
    assert metadata["name"] == "alpha"
    assert by_label(first) == pytest.approx(classified(live, clip, "alpha"), abs=1e-5)
    assert by_label(second) == pytest.approx(classified(live, clip, "beta"), abs=1e-5)
    assert {"alpha", "beta", "gamma"} <= {entry["name"] for entry in index}


def test_repository(live: Live, triton: InferenceServerClient, tmp_path: Path, clip: bytes) -> None:
    live.publish(tmp_path, "kept", seed=3)
    live.publish(tmp_path, "kept", seed=4)
    triton.load_model("kept")
    states = {one["version"]: one["state"] for one in live.http.get("/v1/adapters/kept").json()["versions"]}
    assert states[2] == "resident"
    triton.unload_model("kept")
    states = {one["version"]: one["state"] for one in live.http.get("/v1/adapters/kept").json()["versions"]}
    assert states[2] == "registered"
    index = [entry for entry in triton.get_model_repository_index() if entry["name"] == "kept"]
    assert index == [{"name": "kept", "version": v, "state": "READY", "reason": ""} for v in ("1", "2")]
    registry = live.context.runtime.registry
    registry.weights_path(registry.version("kept", 1)).chmod(0o644)
    registry.weights_path(registry.version("kept", 1)).write_bytes(b"damaged")
    assert live.http.post("/v1/classify?adapter=kept@1", content=clip).status_code == 503
    index = [entry for entry in triton.get_model_repository_index() if entry["name"] == "kept"]
    assert [entry["state"] for entry in index] == ["UNAVAILABLE", "READY"]
    assert "damaged" in index[0]["reason"]
    ready = live.http.post("/v2/repository/index", json={"ready": True}).json()
    assert [entry["version"] for entry in ready if entry["name"] == "kept"] == ["2"]
    with pytest.raises(InferenceServerException, match="comes by POST"):
        triton.load_model("kept", config="{}")
    with pytest.raises(InferenceServerException, match="no adapter"):
        triton.load_model("nobody")
    live.http.delete("/v1/adapters/kept")


def test_statistics(live: Live, triton: InferenceServerClient, tmp_path: Path, clip: bytes) -> None:
    live.publish(tmp_path, "counted")
    (before,) = triton.get_inference_statistics("counted")["model_stats"]
    assert (before["inference_count"], before["last_inference"]) == (0, 0)
    triton.infer("counted", [files(clip, clip)])
    live.http.post("/v1/classify?adapter=counted&adapter=alpha", content=clip)
    assert live.http.post("/v1/classify?adapter=counted", content=b"no audio").status_code == 422
    (found,) = triton.get_inference_statistics("counted", "1")["model_stats"]
    assert (found["name"], found["version"]) == ("counted", "1")
    assert (found["inference_count"], found["execution_count"]) == (3, 2)
    timed = found["inference_stats"]
    assert (timed["success"]["count"], timed["fail"]["count"]) == (2, 1)
    assert 0 < timed["compute_input"]["ns"] < timed["success"]["ns"]
    assert timed["compute_input"]["ns"] + timed["compute_infer"]["ns"] == timed["success"]["ns"]
    every = {(one["name"], one["version"]) for one in triton.get_inference_statistics()["model_stats"]}
    assert {("counted", "1"), ("alpha", "1")} <= every
    live.http.delete("/v1/adapters/counted")


def test_keys(tiny_ast_dir: Path, tmp_path: Path, clip: bytes) -> None:
    """What a key may not see is in no list; to load and unload it must write."""
    with running(settings_for(tiny_ast_dir, tmp_path / "data", inference_keys="one", admin_keys="root")) as service:
        service.http.headers["Authorization"] = "Bearer root"
        service.publish(tmp_path, "voice", task=TaskType.VERIFICATION)
        with InferenceServerClient(service.url.removeprefix("http://")) as client:
            reader = {"Authorization": "Bearer one"}
            assert client.infer("voice", [files(clip)], headers=reader).as_numpy("embedding").shape == (1, 6)
            assert [entry["name"] for entry in client.get_model_repository_index(headers=reader)] == ["voice"]
            for call in (client.load_model, client.unload_model):
                with pytest.raises(InferenceServerException, match="scope write"):
                    call("voice", headers=reader)
            with pytest.raises(InferenceServerException, match="key"):
                client.get_model_repository_index()


def binary(live: Live, head: Json, content: bytes, length: str | None = None, **headers: str) -> httpx.Response:
    text = json.dumps(head).encode()
    sent = {"Inference-Header-Content-Length": length or str(len(text)), **headers}
    return live.http.post("/v2/models/alpha/infer", content=text + content, headers=sent)


def tensor(shape: list[int], datatype: str = "BYTES", size: object = None, **members: Any) -> Json:
    parameters = {} if size is None else {"parameters": {"binary_data_size": size}}
    return {"inputs": [{"name": "audio", "shape": shape, "datatype": datatype, **parameters, **members}]}


def element(content: bytes) -> bytes:
    return len(content).to_bytes(4, "little") + content


SAMPLES = np.zeros(800, "<f4").tobytes()


@pytest.mark.parametrize(
    ("head", "content", "length"),
    [
        (tensor([1], size=8), element(b"text"), "x"),
        (tensor([1], size=8), element(b"text"), "-1"),
        (tensor([1], size=8), element(b"text"), "99999"),
        (tensor([1], size=7), element(b"text"), None),
        (tensor([1], size=True), b"x", None),
        (tensor([1], size="8"), element(b"text"), None),
        (tensor([1]), element(b"text"), None),
        (tensor([1], size=8, data=["AAAA"]), element(b"text"), None),
        (tensor([2], size=8), element(b"text"), None),
        (tensor([1], size=16), element(b"text") * 2, None),
        (tensor([1], size=6), element(b"text")[:6], None),
        (tensor([1], size=3), b"\1\0\0", None),
        (tensor([1], size=4), b"\xff\xff\xff\xff", None),
        (tensor([800], "FP32", size=3196), SAMPLES[:3196], None),
        (tensor([2, 800], "FP32", size=3200), SAMPLES, None),
        (
            tensor([1], data=["AAAA"]) | {"outputs": [{"name": "labels", "parameters": {"classification": 2}}]},
            b"",
            None,
        ),
        (
            tensor([1], data=["AAAA"]) | {"outputs": [{"name": "scores", "parameters": {"classification": -1}}]},
            b"",
            None,
        ),
        (
            tensor([1], data=["AAAA"]) | {"outputs": [{"name": "scores", "parameters": {"classification": True}}]},
            b"",
            None,
        ),
        (tensor([1], data=["AAAA"]) | {"outputs": [{"name": "scores", "parameters": {"binary_data": 1}}]}, b"", None),
        (
            tensor([1], data=["AAAA"]) | {"outputs": [{"name": "scores", "parameters": {"shared_memory_region": "r"}}]},
            b"",
            None,
        ),
        (
            {
                "inputs": [
                    {"name": "audio", "shape": [1], "datatype": "BYTES", "parameters": {"shared_memory_region": "r"}}
                ]
            },
            b"",
            None,
        ),
    ],
)
def test_bad_bytes(live: Live, head: Json, content: bytes, length: str | None) -> None:
    answer = binary(live, head, content, length)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    assert answer.json()["error"] == answer.json()["detail"]
    assert live.context.budget.held == 0


def test_bytes_that_are_no_audio_are_the_clips_fault(live: Live, clip: bytes) -> None:
    content = element(clip) + element(b"text")
    answer = binary(live, tensor([2], size=len(content)), content)
    assert (answer.status_code, answer.json()["code"], answer.json()["clip"]) == (422, "bad_audio", 1)


@pytest.mark.parametrize(
    ("body", "encoding", "expected"),
    [
        (b"no gzip", "gzip", (422, "invalid_request")),
        (gzip.compress(b"{}", mtime=0)[:-4], "gzip", (422, "invalid_request")),
        (gzip.compress(b"{}", mtime=0) + b"more", "gzip", (422, "invalid_request")),
        (zlib.compress(b"{}"), "br", (422, "invalid_request")),
        (gzip.compress(b" " * 2**24 + b"{}", mtime=0), "gzip", (413, "payload_too_large")),
        (gzip.compress(gzip.compress(b" " * 2**20, mtime=0), mtime=0), "gzip", (422, "invalid_request")),
    ],
)
def test_bad_compression(live: Live, body: bytes, encoding: str, expected: tuple[int, str]) -> None:
    answer = live.http.post("/v2/models/alpha/infer", content=body, headers={"Content-Encoding": encoding})
    assert (answer.status_code, answer.json()["code"]) == expected
    assert live.context.budget.held == 0


def test_a_large_tensor_as_bytes(live: Live, triton: InferenceServerClient) -> None:
    """More than JSON may be: 100 s of float32 samples of four clips."""
    sound = noise(100, seed=5)[:, 0].astype(np.float32)
    result = triton.infer("alpha", [samples(np.stack([sound] * 3))])
    assert result.as_numpy("scores").shape == (3, 7)
