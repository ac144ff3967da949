"""From a recipe of LoRA to PEFT: as many parameters, and a trained bundle that PEFT runs with equal outputs."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import ASTConfig, ASTForAudioClassification, Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from service.exchange.to_peft import export_peft
from service.training.export import adapter_spec, count_parameters
from service.training.loop import train
from service.training.recipe import read_recipe
from service.training.shipped import find_recipe
from tests.exchange.classifiers import LABELS, logits, save_classifier
from tests.exchange.test_peft import clip, served
from tests.model.reference import relative_error
from tests.model.test_adapter import AST_BASE, WAV2VEC2_BASE
from tests.training.miniature import write_clip

CLASSES = 50


@pytest.mark.parametrize("name", ["ast-lora", "wav2vec2-lora"])
def test_a_recipe_trains_as_many_parameters_as_peft(name: str) -> None:
    with torch.device("meta"):  # counts need no values
        if name == "ast-lora":
            model, spec, head = ASTForAudioClassification(ASTConfig(num_labels=CLASSES)), AST_BASE, ["classifier"]
        else:
            model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=CLASSES))
            spec, head = WAV2VEC2_BASE, ["projector", "classifier"]
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], modules_to_save=head)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            theirs, _ = get_peft_model(model, config).get_nb_trainable_parameters()
    ours = count_parameters(adapter_spec(read_recipe(find_recipe(name)), CLASSES), spec, 0)
    assert ours["trainable"] == ours["bundle"] == theirs
    assert ours["adapter"] == 12 * 2 * 8 * (768 + 768)


@pytest.mark.parametrize("kind", ["ast", "wav2vec2"])
def test_what_is_trained_here_runs_in_peft(kind: str, tmp_path: Path) -> None:
    base, data, out, back = (tmp_path / name for name in ("base", "data", "out", "back"))
    model = save_classifier(kind, base, **({} if kind == "ast" else {"classifier_proj_size": 256}))
    for part, takes in (("train", 4), ("selection", 2), ("report", 2)):
        for i, label in enumerate(LABELS):
            for take in range(takes):
                write_clip(data / part / label / f"{part}{take}.flac", 300 * 2**i, 1.28, seed=10 * i + take)
    recipe = find_recipe(f"{kind}-lora").read_text()
    for key, value in (("backbone", f'"{base}"'), ("window_frames", "128"), ("epochs", "2"), ("batch", "4")):
        recipe = re.sub(rf"^{key} = .*$", f"{key} = {value}", recipe, flags=re.MULTILINE)
    (tmp_path / "recipe.toml").write_text(recipe)
    train(tmp_path / "recipe.toml", data, out, device="cpu", dtype="float32", progress=False)
    export_peft(out, back, str(base))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        theirs = PeftModel.from_pretrained(type(model).from_pretrained(base), str(back)).eval()
    manifest, answer = served(out, base, clip(1.28))
    assert manifest.labels == tuple(sorted(LABELS))
    assert relative_error(answer, logits(theirs, base, kind, clip(1.28))) < 1e-4
    assert relative_error(answer, logits(model, base, kind, clip(1.28))) > 1e-2  # something was learnt
