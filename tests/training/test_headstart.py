import numpy as np
import pytest
import torch

from service.training.headstart import class_means, discriminants


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
