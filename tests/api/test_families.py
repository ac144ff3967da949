"""Adapters of version 3 over HTTP: whole clips, no head, and families side by side in one request."""

from pathlib import Path

import pytest

from service.model.spec import TaskType
from tests.api.live import Live
from tests.synthesis import encode, noise

WHOLE = {"sampling_rate": 16000, "window_frames": None, "max_window_frames": 200, "mean": -6.0, "std": 5.0}
LORA = {"r": 2, "alpha": 4.0, "targets": ["q", "v", "fc1"]}


def wav(seconds: float) -> bytes:
    return encode(noise(seconds))


def test_an_adapter_without_a_head_answers_what_was_pooled(live: Live, tmp_path: Path) -> None:
    live.publish(tmp_path, "pooled", task=TaskType.FEATURES, input=WHOLE, lora=LORA)
    answer = live.http.post("/v1/embed?adapter=pooled", content=wav(1.234))
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    assert len(result["embedding"]) == live.backbone.embedding_size
    assert result["heard"] == [[0.0, pytest.approx(1.234, abs=0.03)]]
    assert live.http.post("/v1/classify?adapter=pooled", content=wav(1.0)).json()["code"] == "wrong_task"
    longer = live.http.post("/v1/embed?adapter=pooled", content=wav(3.0)).json()["results"][0]
    assert longer["heard"][0][1] == pytest.approx(2.0, abs=0.03)  # as much as max_window_frames allows


def test_families_answer_in_one_request_as_alone(live: Live, tmp_path: Path) -> None:
    families = {
        "lora": {"lora": LORA, "prompt_length": 0, "bottleneck_dim": 0},
        "dora": {"lora": {**LORA, "dora": True}},
        "prefix": {"prefix_length": 3, "bottleneck_dim": 0},
        "ia3": {"ia3": {"output": ["k", "v"], "input": ["fc2"]}},
        "bitfit": {"bias": ["q", "fc2"]},
        "whole": {"input": WHOLE, "lora": LORA},
    }
    for seed, (name, fields) in enumerate(families.items()):
        live.publish(tmp_path, f"of-{name}", seed=seed, **{"format_version": 3, **fields})
    names = [f"of-{name}" for name in families]
    together = live.http.post("/v1/classify?" + "&".join(f"adapter={name}" for name in names), content=wav(1.5))
    assert together.status_code == 200, together.text
    for name, result in zip(names, together.json()["results"], strict=True):
        alone = live.http.post(f"/v1/classify?adapter={name}", content=wav(1.5)).json()["results"][0]
        assert [one["label"] for one in alone["labels"]] == [one["label"] for one in result["labels"]]
        for one, other in zip(alone["labels"], result["labels"], strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=2e-3)


def test_adapters_are_found_by_their_family(live: Live, tmp_path: Path) -> None:
    no_ipet = {"format_version": 3, "prompt_length": 0, "bottleneck_dim": 0}
    made_of: dict[str, tuple[dict[str, object], list[str]]] = {
        "both": ({"format_version": 3, "lora": LORA}, ["ipet", "lora"]),
        "dora": ({**no_ipet, "lora": {**LORA, "dora": True}}, ["dora"]),
        "ia3": ({**no_ipet, "ia3": {"output": ["k"], "input": []}}, ["ia3"]),
        "bitfit": ({**no_ipet, "bias": ["q"]}, ["bitfit"]),
        "prompt": ({"bottleneck_dim": 0}, ["prompt"]),
        "head": ({"prompt_length": 0, "bottleneck_dim": 0}, ["linear"]),
    }
    for name, (fields, _) in made_of.items():
        live.publish(tmp_path, f"made-of-{name}", **fields)
    for name, (_, families) in made_of.items():
        for family in families:
            page = live.http.get("/v1/adapters", params={"q": "made-of-", "family": family}).json()["adapters"]
            assert [one["name"] for one in page] == [f"made-of-{name}"]
            assert page[0]["versions"][0]["families"] == families
    assert live.http.get("/v1/adapters?family=peft").json()["code"] == "invalid_request"
    for name in made_of:
        live.http.delete(f"/v1/adapters/made-of-{name}")


def test_words_of_version_3_are_checked(live: Live, tmp_path: Path) -> None:
    for window, said in (
        ({"normalize": 1}, "input.normalize"),
        ({"window_frames": None, "max_window_frames": 1}, "input.max_window_frames"),
        ({"normalize": True}, "reads a filter bank"),
    ):
        with pytest.raises(Exception, match=said):
            live.publish(tmp_path, "wrong", format_version=3, input={**WHOLE, **window})
    with pytest.raises(Exception, match="whole clips need format_version 3"):
        live.publish(tmp_path, "wrong", input=WHOLE)
