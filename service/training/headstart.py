"""Where a verification head starts: linear discriminants of the bare backbone's embeddings. Knows no audio.

With few speakers a random projection has to find by gradient what linear algebra gives at once. The discriminants
fold into the head's weight and bias, so that nothing of this remains in the bundle.
"""

import torch
from torch import Tensor

SHRINKAGE = 0.3  # of the within-speaker covariance towards its diagonal


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
    values = embeddings.double()
    dimensions = values.shape[1]
    if outputs > dimensions:
        raise ValueError(f"embedding_dim {outputs} is larger than the backbone's embeddings, {dimensions}")
    mean = values.mean(dim=0)
    count = int(speakers.max()) + 1
    sums = torch.zeros(count, dimensions, dtype=values.dtype).index_add_(0, speakers, values - mean)
    numbers = torch.bincount(speakers, minlength=count).clamp_min(1).unsqueeze(1)
    centres = sums / numbers
    residuals = values - mean - centres[speakers]
    within = residuals.T @ residuals / len(values)
    total = (values - mean).T @ (values - mean) / len(values)
    variances = within.diagonal()
    floor = SHRINKAGE * variances + 1e-6 * variances.mean() + 1e-12
    within = (1 - SHRINKAGE) * within + floor.diag()
    root = torch.linalg.inv(torch.linalg.cholesky(within))  # whitens what varies within a speaker
    _, directions = torch.linalg.eigh(root @ total @ root.T)  # ascending
    weight = directions.flip(1)[:, :outputs].T @ root
    return weight.float(), -(weight @ mean).float()


def class_means(outputs: Tensor, classes: Tensor, count: int) -> Tensor:
    """Mean direction of each class: `[N, dim]`, `[N]` -> `[count, dim]`."""
    unit = torch.nn.functional.normalize(outputs)
    return torch.zeros(count, outputs.shape[1]).index_add_(0, classes, unit)
