"""Dropouts and layerdrop of training: off they change nothing, on they do what their names say."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Model
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.noise import QUIET, LayerNoise
from tests.backbones import adapter_spec, random_adapter


def embeddings(backbone: Backbone, noise: LayerNoise, seed: int = 0) -> torch.Tensor:
    weights = random_adapter(adapter_spec(), backbone.spec, std=0.2)
    inputs = torch.randn(2, *backbone.input_shape(50), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(seed)
    return backbone.forward(inputs, Bank.of(backbone, [weights], noise), [1, 1])


@pytest.mark.parametrize("name", ["hidden", "attention", "activation", "layerdrop"])
def test_each_is_heard(name: str, tiny_wav2vec2: Backbone) -> None:
    noise = LayerNoise(**{name: 0.5})
    quiet = embeddings(tiny_wav2vec2, QUIET)
    heard = [embeddings(tiny_wav2vec2, noise, seed) for seed in range(6)]
    assert any(not torch.equal(each, quiet) for each in heard)
    assert torch.equal(heard[0], embeddings(tiny_wav2vec2, noise, 0))


def test_without_layers_the_front_end_is_pooled(tiny_wav2vec2: Backbone) -> None:
    inputs = torch.randn(2, *tiny_wav2vec2.input_shape(50), generator=torch.Generator().manual_seed(1))
    bare = tiny_wav2vec2.pool(tiny_wav2vec2.embed(inputs))
    torch.testing.assert_close(embeddings(tiny_wav2vec2, LayerNoise(layerdrop=1.0)), bare)


def test_dropouts_lie_where_transformers_has_them() -> None:
    ones = torch.ones(20_000)
    noise = LayerNoise(hidden=0.2, activation=0.6)
    shares = {name: float((noise.behind(name, ones) == 0).float().mean()) for name in ("q", "o", "fc1", "fc2")}
    assert shares == pytest.approx({"q": 0.0, "o": 0.2, "fc1": 0.6, "fc2": 0.2}, abs=0.02)
    config = SimpleNamespace(hidden_dropout=0.1, attention_dropout=0.2, activation_dropout=0.3, layerdrop=0.4)
    config.feat_proj_dropout = 0.6
    assert LayerNoise.of(config, 0.5) == LayerNoise(0.5, 0.1, 0.2, 0.3, 0.4, 0.6)
    assert LayerNoise.of(SimpleNamespace(), 0.5) == LayerNoise(0.5)


def test_the_front_end_is_transformers_own_in_training(tiny_wav2vec2: Backbone, tiny_wav2vec2_dir: Path) -> None:
    """Dropout behind the projection drops what the library's drops, and masked frames are those it is told to mask."""
    others = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "layerdrop"), 0.0)
    module = Wav2Vec2Model.from_pretrained(tiny_wav2vec2_dir, feat_proj_dropout=0.4, **others).train()
    inputs = torch.randn(3, *tiny_wav2vec2.input_shape(50), generator=torch.Generator().manual_seed(1))
    noise = LayerNoise(projection=0.4, masked=0.3, stretch=4, mask=module.masked_spec_embed)
    torch.manual_seed(7)
    dropped = tiny_wav2vec2.embed(inputs, LayerNoise(projection=0.4))
    masks = noise.masks(3, dropped.shape[1])
    torch.manual_seed(7)
    with torch.no_grad():
        wanted = module(inputs, mask_time_indices=torch.zeros_like(masks), output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(dropped, wanted, rtol=1e-5, atol=1e-5)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(LayerNoise, "masks", lambda *_: masks)
        torch.manual_seed(7)
        masked = tiny_wav2vec2.embed(inputs, noise)
        torch.manual_seed(7)
        wanted = module(inputs, mask_time_indices=masks, output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(masked, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(masked, dropped)


@pytest.mark.parametrize(("frames", "share"), [(200, 0.3), (49, 0.05), (149, 0.05), (7, 0.5)])
def test_masks_are_drawn_as_transformers_draws_them(frames: int, share: float) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    stretch = min(10, frames)  # the library refuses fewer frames than a stretch has
    ours = torch.cat([LayerNoise(masked=share).masks(20, frames) for _ in range(100)]).float()
    drawn = [_compute_mask_indices((20, frames), share, stretch, min_masks=2) for _ in range(100)]
    theirs = torch.from_numpy(np.concatenate(drawn)).float()
    assert float(ours.mean()) == pytest.approx(float(theirs.mean()), abs=0.01)
    torch.testing.assert_close(ours.mean(dim=0), theirs.mean(dim=0), rtol=0, atol=0.07)
