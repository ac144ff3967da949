"""Trainable parameters by part, against counts by hand."""

from dataclasses import replace

import torch

from service.model.adapter import AdapterWeights, TrainableAdapter, parameter_counts
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.selection import RowAdapters
from service.model.spec import BackboneSpec, ModelType, TaskType
from tests.backbones import adapter_spec, random_adapter

AST_BASE = BackboneSpec("ast-base", ModelType.AST, 768, 12, 12, 768, 86_000_000, "sha256:" + "0" * 64)
WAV2VEC2_BASE = replace(AST_BASE, model_type=ModelType.WAV2VEC2, embedding_size=1536)
ESC50 = adapter_spec(4, 32, outputs=50)


def test_the_papers_ast_on_esc50() -> None:
    head = 2 * 768 + 768 * 50 + 50
    counts = parameter_counts(ESC50, AST_BASE)
    assert counts == {"prompt": 12 * 4 * 768, "adapter": 12 * (1537 * 32 + 768), "head": head}
    assert sum(counts.values()) == 676_274  # "about 0.676 M"


def test_parts_of_version_2() -> None:
    plain = parameter_counts(ESC50, AST_BASE)
    prompted = parameter_counts(adapter_spec(4, 32, outputs=50, input_prompt=8, frames=512), AST_BASE)
    assert prompted == plain | {"prompt": plain["prompt"] + 2 * 8 * 512 + 2 * (128 - 16) * 8}
    convolved = parameter_counts(adapter_spec(4, 32, outputs=50, conv_kernel=15), AST_BASE)
    assert convolved == plain | {"adapter": plain["adapter"] + 12 * 32 * 16}
    speaker = adapter_spec(64, 128, task=TaskType.VERIFICATION, outputs=128, layer_aggregation=True)
    assert parameter_counts(speaker, WAV2VEC2_BASE)["head"] == 13 + 1536 * 128 + 128


def test_a_trainable_adapter_has_as_many(tiny_ast: Backbone) -> None:
    spec = adapter_spec(4, 8, conv_kernel=5, layer_aggregation=True, input_prompt=3, frames=64)
    numbers = [parameter.numel() for parameter in TrainableAdapter(spec, tiny_ast.spec).parameters()]
    assert sum(numbers) == sum(parameter_counts(spec, tiny_ast.spec).values())


def test_tensors_make_the_same_weights_again(tiny_ast: Backbone) -> None:
    spec = adapter_spec(4, 8, conv_kernel=5, layer_aggregation=True, input_prompt=3, frames=64)
    weights = random_adapter(spec, tiny_ast.spec, seed=3)
    tensors = weights.to_tensors()
    again = AdapterWeights.from_tensors(spec, tensors).to_tensors()
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert sum(t.numel() for t in tensors.values()) == sum(parameter_counts(spec, tiny_ast.spec).values())


def test_aggregation_starts_at_the_mean_over_layers(tiny_wav2vec2: Backbone) -> None:
    adapter = TrainableAdapter(adapter_spec(0, 0, layer_aggregation=True), tiny_wav2vec2.spec)
    inputs = torch.randn((1, *tiny_wav2vec2.input_shape(64)), generator=torch.Generator().manual_seed(0))
    bare = Bank.of(tiny_wav2vec2, [])
    with torch.no_grad():
        outputs = [tiny_wav2vec2.embed(inputs)]
        for i in range(tiny_wav2vec2.spec.num_hidden_layers):
            outputs.append(tiny_wav2vec2.run_layer(i, outputs[-1], RowAdapters(bare.select([0]), i)))
        expected = tiny_wav2vec2.pool(torch.stack(outputs).mean(dim=0))
        answer = tiny_wav2vec2.forward(inputs, Bank.of(tiny_wav2vec2, [adapter.weights()]), [1])
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-6)
