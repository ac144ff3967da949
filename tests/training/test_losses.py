import math

import pytest
import torch
from torch.nn import functional

from service.training.batches import Wanted
from service.training.losses import ClassLoss, SpeakerLoss, shares
from service.training.recipe import Loss

CLASSES = 3
PLAIN = shares([Wanted(0, (0,), (0,), 1.0), Wanted(0, (2,), (2,), 1.0)], CLASSES)
LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.1, 0.3]])


def test_cross_entropy_of_plain_clips_is_torchs() -> None:
    loss = ClassLoss(Loss())(LOGITS, PLAIN)
    assert float(loss) == pytest.approx(float(functional.cross_entropy(LOGITS, torch.tensor([0, 2]))))


def test_mixtures_weigh_both_classes() -> None:
    mixture = shares([Wanted(0, (0,), (1,), 0.25), Wanted(0, (2,), (2,), 1.0)], CLASSES)
    logs = LOGITS.log_softmax(1)
    expected = -(0.25 * logs[0, 0] + 0.75 * logs[0, 1] + logs[1, 2]) / 2
    assert float(ClassLoss(Loss())(LOGITS, mixture)) == pytest.approx(float(expected))


def test_smoothing_gives_a_share_to_all_classes() -> None:
    logs = LOGITS.log_softmax(1)
    plain = torch.stack([logs[0, 0], logs[1, 2]])
    expected = -(0.7 * plain + 0.3 * logs.mean(dim=1)).mean()
    assert float(ClassLoss(Loss(label_smoothing=0.3))(LOGITS, PLAIN)) == pytest.approx(float(expected))
    wanted = torch.tensor([[0.85, 0.15, 0.15], [0.15, 0.15, 0.85]])
    apart = functional.binary_cross_entropy_with_logits(LOGITS, wanted)
    smooth = Loss(kind="binary_cross_entropy", label_smoothing=0.3)
    assert float(ClassLoss(smooth)(LOGITS, PLAIN)) == pytest.approx(float(apart))
    torch.manual_seed(0)
    speakers = SpeakerLoss(Loss(kind="am_softmax", label_smoothing=0.3, scale=4.0, margin=0.0), 3, 3)
    cosines = 4.0 * functional.normalize(LOGITS) @ functional.normalize(speakers.prototypes).T
    target = functional.cross_entropy(cosines, torch.tensor([0, 2]), label_smoothing=0.3)
    assert float(speakers(LOGITS, PLAIN).detach()) == pytest.approx(float(target.detach()), rel=1e-5)


def test_binary_cross_entropy_treats_classes_apart() -> None:
    wanted = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])
    expected = functional.binary_cross_entropy_with_logits(LOGITS, wanted)
    loss = ClassLoss(Loss(kind="binary_cross_entropy"))(LOGITS, PLAIN)
    assert float(loss) == pytest.approx(float(expected))


@pytest.mark.parametrize("kind", ["cross_entropy", "am_softmax", "aam_softmax"])
def test_speaker_losses_fall_when_speakers_part(kind: str) -> None:
    torch.manual_seed(0)
    loss = SpeakerLoss(Loss.model_validate({"kind": kind, "scale": 10.0}), 8, 3)
    embeddings = torch.randn(2, 8, requires_grad=True)
    optimiser = torch.optim.Adam([embeddings, *loss.parameters()], lr=0.1)
    before = float(loss(embeddings, PLAIN).detach())
    for _ in range(30):
        optimiser.zero_grad()
        loss(embeddings, PLAIN).backward()
        optimiser.step()
    assert float(loss(embeddings, PLAIN).detach()) < before / 3


@pytest.mark.parametrize("kind", ["am_softmax", "aam_softmax"])
def test_without_margin_both_are_a_scaled_cosine_softmax(kind: str) -> None:
    torch.manual_seed(0)
    loss = SpeakerLoss(Loss.model_validate({"kind": kind, "margin": 0.0, "scale": 7.0}), 8, 3)
    embeddings = torch.randn(2, 8)
    cosines = functional.normalize(embeddings) @ functional.normalize(loss.prototypes).T
    expected = functional.cross_entropy(7.0 * cosines, torch.tensor([0, 2])).detach()
    with torch.no_grad():
        assert float(loss(embeddings, PLAIN)) == pytest.approx(float(expected), rel=1e-5)


def test_margins_are_what_the_papers_say() -> None:
    prototype = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    angle = 0.5
    embedding = torch.tensor([[math.cos(angle), math.sin(angle)]])
    target = shares([Wanted(0, (0,), (0,), 1.0)], 2)
    for kind, moved in (("am_softmax", math.cos(angle) - 0.2), ("aam_softmax", math.cos(angle + 0.2))):
        loss = SpeakerLoss(Loss.model_validate({"kind": kind, "margin": 0.2, "scale": 1.0}), 2, 2)
        with torch.no_grad():
            loss.prototypes.copy_(prototype)
        expected = math.log(1 + math.exp(math.sin(angle) - moved))
        assert float(loss(embedding, target).detach()) == pytest.approx(expected, abs=1e-5)


def test_am_softmax_is_equation_6_of_its_paper() -> None:
    """Wang et al. 2018, written out row by row, at the paper's scale; gradients too."""
    torch.manual_seed(0)
    scale, margin, speakers = 30.0, 0.35, [3, 0, 3, 1]
    loss = SpeakerLoss(Loss(kind="am_softmax", scale=scale, margin=margin), 16, 5)
    embeddings = torch.randn(4, 16, requires_grad=True)
    ours = loss(embeddings, shares([Wanted(0, (who,), (who,), 1.0) for who in speakers], 5))
    rows = []
    for embedding, who in zip(embeddings, speakers, strict=True):
        cosines = [embedding @ w / (embedding.norm() * w.norm()) for w in loss.prototypes]
        wanted = torch.exp(scale * (cosines[who] - margin))
        others = sum(torch.exp(scale * cosine) for other, cosine in enumerate(cosines) if other != who)
        rows.append(-torch.log(wanted / (wanted + others)))
    theirs = torch.stack(rows).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    inputs = (embeddings, loss.prototypes)
    for mine, reference in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def test_mixtures_of_speakers_weigh_both() -> None:
    torch.manual_seed(0)
    loss = SpeakerLoss(Loss(kind="am_softmax", scale=5.0, margin=0.2), 8, 3)
    embeddings = torch.randn(1, 8)
    cosines = (functional.normalize(embeddings) @ functional.normalize(loss.prototypes).T)[0].detach()
    logs = (5.0 * (cosines - torch.tensor([0.2, 0.2, 0.0]))).log_softmax(0)
    mixture = float(loss(embeddings, shares([Wanted(0, (0,), (1,), 0.3)], CLASSES)).detach())
    assert mixture == pytest.approx(-float(0.3 * logs[0] + 0.7 * logs[1]), rel=1e-5)
