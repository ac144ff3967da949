import numpy as np
import pytest
import torch

from service.training.headstart import _folds, class_means, classifier, discriminants


def clouds(rows: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """Five speakers apart in the first two dimensions only, which vary least."""
    generator = torch.Generator().manual_seed(0)
    speakers = torch.arange(rows) % 5
    values = torch.randn(rows, 6, generator=generator) * torch.tensor([0.1, 0.1, 3.0, 3.0, 3.0, 3.0])
    values[:, 0] += speakers % 2
    values[:, 1] += speakers // 2
    return values + 7.0, speakers


def test_outputs_are_centred_and_ordered() -> None:
    values, speakers = clouds()
    weight, bias = discriminants(values, speakers, 4)
    outputs = values @ weight.T + bias
    np.testing.assert_allclose(outputs.mean(dim=0), 0.0, atol=1e-3)
    spreads = outputs.std(dim=0)
    assert bool((spreads[:-1] >= spreads[1:] - 1e-4).all())


def test_first_directions_are_those_that_part_speakers() -> None:
    values, speakers = clouds()
    weight, bias = discriminants(values, speakers, 2)
    means = class_means(values @ weight.T + bias, speakers, 5)
    outputs = torch.nn.functional.normalize(values @ weight.T + bias)
    nearest = (outputs @ torch.nn.functional.normalize(means).T).argmax(dim=1)
    assert float((nearest == speakers).float().mean()) > 0.9
    assert float(weight[:, 2:].abs().max()) < 0.1 * float(weight[:, :2].abs().max())


def test_more_outputs_than_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="embedding_dim 7 is larger"):
        discriminants(*clouds(50), 7)


def test_a_classifier_is_as_sure_as_clips_left_out_allow() -> None:
    values, classes = clouds()
    weight, bias = classifier(values, classes, torch.arange(2000))
    fresh = values + torch.tensor([0.0, 0.0, 3.0, -3.0, 3.0, 3.0])  # the same, elsewhere in what says nothing
    logits = fresh @ weight.T + bias
    assert float((logits.argmax(dim=1) == classes).float().mean()) > 0.95
    generator = torch.Generator().manual_seed(1)
    noise, labels = torch.randn(40, 30, generator=generator), torch.arange(40) % 4
    unsure, _ = classifier(noise, labels, torch.arange(40))  # in as many dimensions as there are rows of a fit
    sure, _ = classifier(noise, labels, labels)  # a clip a class: nothing can be left out
    heard, held = noise @ unsure.T, torch.randn(400, 30, generator=generator) @ unsure.T
    assert float(heard.argmax(dim=1).eq(labels).float().mean()) > 0.8  # what it was fitted to
    assert float(held.softmax(dim=1).max(dim=1).values.mean()) < 0.5  # of nothing it is not sure
    torch.testing.assert_close(sure, unsure)  # the highest temperature, both


def test_copies_of_a_clip_are_left_out_with_it() -> None:
    generator = torch.Generator().manual_seed(0)
    clips = torch.arange(12).repeat_interleave(3)
    values, labels = torch.randn(12, 20, generator=generator)[clips], clips % 3
    assert _folds(labels, clips).tolist() == (torch.arange(12) // 3).repeat_interleave(3).tolist()
    told, _ = classifier(values, labels, clips)
    believed, _ = classifier(values, labels, torch.arange(36))  # each copy's others are still in the fit
    assert float(believed.norm()) > 3 * float(told.norm())
    assert _folds(torch.tensor([0, 0, 1]), torch.tensor([4, 7, 9])).tolist() == [0, 1, -1]
