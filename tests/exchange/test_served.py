"""What PEFT saved, pushed to a running server, answers over HTTP what PEFT says of the same clip."""

import hashlib
import json
import warnings
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification
from typer.testing import CliRunner

from service.cli.main import app
from service.exchange.bundles import import_bundle
from service.registry.bundle import digest_of_hashes
from tests.api.live import Live, running, settings_for
from tests.exchange.classifiers import LABELS, adapt, logits, save_classifier
from tests.exchange.test_peft import clip, configs, served
from tests.model.reference import relative_error
from tests.synthesis import encode

TOLERANCE = 1e-4
ADDED = {"labels": ["miaow", "drip", "<i>"], "window_frames": 100}


def upload(live: Live, saved: Path, name: str, convert: bool = True, **added: object) -> httpx.Response:
    """Has the server convert what PEFT saved, with fields added to its config."""
    config = json.loads((saved / "adapter_config.json").read_bytes()) | added
    parts = {"config": json.dumps(config), "weights": (saved / "adapter_model.safetensors").read_bytes()}
    parts["card"] = f"# {name}"
    return live.http.post(f"/v1/adapters/{name}/versions?convert={convert}", files=parts)


@pytest.mark.parametrize("kind", ["ast", "wav2vec2"])
def test_answers_over_http_are_pefts(kind: str, tmp_path: Path) -> None:
    base, families = tmp_path / "base", ("lora", "dora", "ia3")
    models = {}
    for family in families:
        models[family] = adapt(save_classifier(kind, base), configs(kind)[family], tmp_path / family)
    samples = clip(1.1)
    with running(settings_for(base, tmp_path / "data", batch_seconds=400)) as live:  # 30 s are many tokens here
        for family in families:
            words = ["adapters", "push", str(tmp_path / family), "--url", live.url, "--base", str(base)]
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, done.output
            pushed = live.http.get(f"/v1/adapters/{family}").json()["versions"][0]["digest"]
            converted = upload(live, tmp_path / family, family)
            assert (converted.status_code, converted.json()["digest"]) == (200, pushed)  # the same bytes
        query = "&".join(f"adapter={family}" for family in families)
        answer = httpx.post(
            f"{live.url}/v1/classify?{query}&top_k=0", content=encode(samples, codec="pcm_f32le"), timeout=60
        )
    for family, result in zip(families, answer.raise_for_status().json()["results"], strict=True):
        expected = logits(models[family], base, kind, samples).softmax(dim=1)[0]
        scores = {one["label"]: one["score"] for one in result["labels"]}
        assert scores == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=TOLERANCE), family


def test_a_server_makes_a_bundle_of_what_peft_saved(tmp_path: Path) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    adapt(save_classifier("wav2vec2", base), configs("wav2vec2")["lora"], saved)
    with running(settings_for(base, tmp_path / "data")) as live:
        refused = upload(live, saved, "named", convert=False)
        assert refused.status_code == 422
        assert "what PEFT saved is taken with convert=true" in refused.json()["detail"]
        made = upload(live, saved, "named", **ADDED)
        assert made.status_code == 201, made.text
        told = live.http.get("/v1/adapters/named/versions/1").json()
        assert (told["labels"], told["families"], told["verified"]) == (ADDED["labels"], ["lora"], True)
        assert told["input"]["window_frames"] == 100
        assert live.http.get("/v1/adapters/named/versions/1/card").text == "# named"
        config = live.http.get("/v1/adapters/named/versions/1/config").content
        weights = live.http.get("/v1/adapters/named/versions/1/weights").content
        digest = digest_of_hashes(hashlib.sha256(config).digest(), hashlib.sha256(weights).digest())
        assert told["digest"] == made.json()["digest"] == digest
        assert upload(live, saved, "named", **ADDED).status_code == 200
        for added, said in (
            ({"labels": ["one"]}, "3 classes, but 1 labels are given; give 3 labels"),
            ({"labels": "one"}, "labels: expected a list"),
            ({"window_frames": "1"}, "window_frames: expected a whole number"),
            ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING cannot be read"),
            ({"peft_type": "IPET"}, "expected a directory that PEFT saved"),
            ({"lora_alpha": 10**4000}, "lora_alpha: expected a number"),
            ({"target_modules": "(?=q).*"}, "target_modules: "),
        ):
            refused = upload(live, saved, "refused", **added)
            assert (refused.status_code, refused.json()["code"]) == (422, "invalid_bundle")
            assert said in refused.json()["detail"]
        assert live.http.get("/v1/adapters/refused").status_code == 404
        assert not list((tmp_path / "data").glob("**/adapter_config.json"))[1:]


@pytest.mark.slow
def test_at_base_size(tmp_path: Path) -> None:
    base, saved, out = tmp_path / "base", tmp_path / "saved", tmp_path / "out"
    torch.manual_seed(0)
    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=10)).eval()
    model.save_pretrained(base)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(base)
    head = ["projector", "classifier"]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], modules_to_save=head)
    adapted = adapt(model, config, saved)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_bundle(saved, out, str(base), name="mine")
    samples: np.ndarray = clip(2.0)
    _, answer = served(out, base, samples)
    assert relative_error(answer, logits(adapted, base, "wav2vec2", samples)) < TOLERANCE
