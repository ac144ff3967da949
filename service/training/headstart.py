"""Where a head starts: linear discriminants of the bare backbone's embeddings, in closed form.

With few clips a random head has to find by gradient what linear algebra gives at once. The discriminants fold into the
head's weight and bias, so that nothing of this remains in the bundle.
"""

import math

import torch
from torch import Tensor

from service.scoring.calibration import LOG_TEMPERATURES, fit_temperature

SHRINKAGE = 0.3  # of the covariance within classes towards its diagonal
FOLDS = 10  # at most, of the clips that tell how sure a classifier may be


def discriminants(embeddings: Tensor, speakers: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Directions that part speakers best, relative to how much each speaker varies.

    Args:
        embeddings: `[N, E]`.
        speakers: `[N]`, index of who speaks.
        outputs: number of directions; beyond the rank of the classes they are those of the largest remaining spread.

    Returns:
        weight `[outputs, E]` and bias `[outputs]`: outputs are centred, and vary by about 1 within a speaker, in
        directions ordered by how well they part speakers.

    Raises:
        ValueError: more outputs than dimensions.
    """
    dimensions = embeddings.shape[1]
    if outputs > dimensions:
        raise ValueError(f"embedding_dim {outputs} is larger than the backbone's embeddings, {dimensions}")
    mean, _, within = _moments(embeddings, speakers)
    centred = embeddings.double() - mean
    root = torch.linalg.inv(torch.linalg.cholesky(within))  # whitens what varies within a speaker
    _, directions = torch.linalg.eigh(root @ (centred.T @ centred / len(centred)) @ root.T)  # ascending
    weight = directions.flip(1)[:, :outputs].T @ root
    return weight.float(), -(weight @ mean).float()


def classifier(embeddings: Tensor, classes: Tensor, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Linear discriminant analysis (Fisher 1936), classes taken as equally likely: weight `[C, E]` and bias `[C]`.

    On the few examples that it is fitted to it is far too sure. Logits are therefore divided by the temperature that is
    likeliest for clips left out of the fit, each once; where every class has a single clip, by the highest.

    Args:
        clips: `[N]`, which clip an example was made of.
    """
    weight, bias = _linear(embeddings, classes)
    folds = _folds(classes, clips)
    logits, told = [], []
    for fold in range(int(folds.max()) + 1):
        held = folds == fold
        left_out, offset = _linear(embeddings[~held], classes[~held], len(bias))
        logits.append(embeddings[held].double() @ left_out.T + offset)
        told.append(classes[held])
    hottest = math.exp(LOG_TEMPERATURES[-1])
    temperature = fit_temperature(torch.cat(logits).numpy(), torch.cat(told).numpy()) if logits else hottest
    return (weight / temperature).float(), (bias / temperature).float()


def _linear(embeddings: Tensor, classes: Tensor, count: int = 0) -> tuple[Tensor, Tensor]:
    mean, centres, within = _moments(embeddings, classes, count)
    weight = torch.linalg.solve(within, (centres - mean).T).T
    return weight, -(weight * (centres + mean)).sum(dim=1) / 2


def _folds(classes: Tensor, clips: Tensor) -> Tensor:
    """The fold of each example `[N]`, that of its clip; -1 of a class's only clip, which nothing else can stand for."""
    fold_of: dict[int, int] = {}
    for target in set(classes.tolist()):
        own = sorted(set(clips[classes == target].tolist()))
        fold_of |= {clip: place % FOLDS if len(own) > 1 else -1 for place, clip in enumerate(own)}
    return torch.tensor([fold_of[clip] for clip in clips.tolist()])


def _moments(embeddings: Tensor, classes: Tensor, count: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Mean `[E]`, means of the classes `[C, E]`, and the shrunk covariance within them `[E, E]`, float64."""
    values, count = embeddings.double(), count or int(classes.max()) + 1
    sums = torch.zeros(count, values.shape[1], dtype=values.dtype).index_add_(0, classes, values)
    centres = sums / torch.bincount(classes, minlength=count).clamp_min(1).unsqueeze(1)
    residuals = values - centres[classes]
    within = residuals.T @ residuals / len(values)
    variances = within.diagonal()
    floor = SHRINKAGE * variances + 1e-6 * variances.mean() + 1e-12
    return values.mean(dim=0), centres, (1 - SHRINKAGE) * within + floor.diag()


def class_means(outputs: Tensor, classes: Tensor, count: int) -> Tensor:
    """Mean direction of each class: `[N, dim]`, `[N]` -> `[count, dim]`."""
    unit = torch.nn.functional.normalize(outputs)
    return torch.zeros(count, outputs.shape[1]).index_add_(0, classes, unit)
