"""The student: what its losses count, what it does not get to hear, and the form in which it is kept."""

from pathlib import Path

import numpy as np
import pytest
import torch

from service.model.bank import Bank
from service.model.loading import load_backbone
from service.training.pretraining.batches import Batch
from service.training.pretraining.recipe import PretrainRecipe
from service.training.pretraining.student import Student

RECIPE = PretrainRecipe.model_validate(
    {
        "geometry": {"width": 32, "layers": 1, "heads": 2, "feed_forward": 32},
        "teachers": [{"name": "same", "of_clip": True}, {"name": "same"}, {"name": "other"}],
    }
)


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return Student(RECIPE, [5, 7, 7], [True, False, False])


def make_batch(frames: float = 1.0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    heard = torch.randn(3, 16_000, generator=generator) / 10
    count = RECIPE.geometry.frames(16_000)
    missing = torch.full((3, count, 7), torch.nan)
    targets = (torch.randn(3, 5, generator=generator), missing * frames, torch.zeros(3, count, 7))
    return Batch(heard, heard, torch.zeros(3, count, dtype=torch.bool), targets)


def test_teachers_of_one_name_add_up_and_no_target_is_no_loss(student: Student) -> None:
    losses = student(make_batch())
    assert set(losses) == {f"{n}{m}" for n in ("spectrum", "same", "other") for m in ("", "_middle")}
    assert all(torch.isfinite(loss) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    gradients = [student.top.teachers[number].weight.grad for number in range(3)]
    assert [bool(each is not None and each.any()) for each in gradients] == [True, False, True]


def test_masked_frames_are_not_heard_at_the_top(student: Student) -> None:
    batch = make_batch()
    masked = batch.masked.clone()
    masked[:] = True
    blind = Batch(batch.heard, batch.clean, masked, batch.targets)
    deaf = Batch(torch.zeros_like(batch.heard), batch.clean, masked, batch.targets)
    one, other = student(blind), student(deaf)
    assert torch.allclose(one["spectrum"], other["spectrum"], atol=1e-6)
    assert not torch.allclose(one["spectrum_middle"], other["spectrum_middle"], atol=1e-4)


def test_the_spectrum_is_that_of_the_same_moment(student: Student) -> None:
    click = torch.zeros(1, 16_000)
    click[0, 8_000] = 1.0
    loudest = int(student._spectrum(click).sum(dim=2).argmax())
    geometry = RECIPE.geometry
    assert abs(loudest * geometry.hop + geometry.receptive_field / 2 - 8_000) <= geometry.hop


def test_the_service_computes_what_was_trained(student: Student, tmp_path: Path) -> None:
    student.export(tmp_path)
    student.backbone.load_state_dict({n: v.half().float() for n, v in student.backbone.state_dict().items()})
    clip = make_batch().heard[:1]
    with torch.no_grad():
        hidden = student.backbone(clip).last_hidden_state
    backbone = load_backbone(str(tmp_path), "cpu", "float32")
    with torch.no_grad():
        served = backbone.forward(clip, Bank.of(backbone, []), [0])
    expected = torch.cat([hidden.mean(dim=1), hidden.var(dim=1).sqrt()], dim=1)
    np.testing.assert_allclose(served.numpy(), expected.numpy(), atol=1e-4)


def test_the_first_convolution_starts_as_a_filter_bank(student: Student) -> None:
    weight = student.backbone.feature_extractor.conv_layers[0].conv.weight[:, 0]
    power = torch.fft.rfft(weight[: 84 * 3].detach(), 1600).abs()
    peaks = power.argmax(dim=1).reshape(84, 3) * 10  # hertz
    assert (peaks.float().std(dim=1) < 40).all()
    assert (peaks.float().mean(dim=1).diff() > -20).all()
    assert peaks[0].max() < 200
    assert peaks[-1].min() > 7000
