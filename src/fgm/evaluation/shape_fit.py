"""Which shape is a blob? Its alpha (shape_segments) beside the coverage T_s of each shape s of equal area and centre,

    r_s = (sum alpha / A_s)^1/2        centre_s = sum p alpha(p) / sum alpha - r_s m_s

with A_s the area and m_s the centre of mass of s at radius 1, blurred by Gaussians of the standard deviations BLURS:

    soft IoU = sum min(alpha, T) / sum max(alpha, T)

The best one is the fit. A blurred shape is thus still recognised; the soft IoU without blur tells what it has lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fgm.data.shapes.render import AREAS, CENTROIDS, coverage
from fgm.evaluation.shape_segments import Blob

BLURS = (0.0, 0.5, 1.0, 1.5)  # in pixels


@dataclass(frozen=True)
class Fit:
    """The best template of a blob; score is its soft IoU, crispness the one of the same shape without blur."""

    shape: int
    x: float
    y: float
    radius: float
    score: float
    crispness: float


def fit(blobs: Sequence[Blob], shapes: int) -> list[Fit]:
    """Of blobs from images of one size, among the first `shapes` of the vocabulary."""
    if not blobs:
        return []
    alpha = torch.from_numpy(np.stack([blob.alpha for blob in blobs]))
    shape, rows = torch.arange(shapes).expand(len(blobs), -1), torch.arange(len(blobs))
    centre, radius = moments(alpha, shape)
    ious = soft_iou(alpha[:, None, None], blurred(coverage(shape, centre, radius, alpha.shape[-1])))
    score, best = ious.amax(2).max(1)
    columns = (best, *centre[rows, best].T, radius[rows, best], score, ious[rows, best, 0])
    return [Fit(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def moments(alpha: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (n, k, 2) and radii (n, k) at which shapes (n, k) have the area and centre of mass of alpha (n, h, w)."""
    area = alpha.sum((1, 2)).clamp_min(1e-6)
    x = (alpha.sum(1) @ (torch.arange(alpha.shape[2]) + 0.5)) / area
    y = (alpha.sum(2) @ (torch.arange(alpha.shape[1]) + 0.5)) / area
    radius = (area[:, None] / AREAS[shape]).sqrt()
    return torch.stack([x[:, None].expand_as(radius), y[:, None] - radius * CENTROIDS[shape]], -1), radius


def blurred(template: Tensor) -> Tensor:
    """(*, size, size) to (*, len(BLURS), size, size)."""
    kernels = torch.stack([gaussian(template.shape[-1], std) for std in BLURS])
    return kernels @ template[..., None, :, :] @ kernels.mT


def gaussian(size: int, std: float) -> Tensor:
    """Convolution with a sampled Gaussian as a matrix (size, size); the identity at std = 0."""
    offset = torch.arange(size)[:, None] - torch.arange(size).float()
    weight = torch.exp(-offset.square() / (2 * max(std, 1e-3) ** 2))
    return weight / weight.sum(0).max()


def soft_iou(a: Tensor, b: Tensor) -> Tensor:
    """Over the last two axes."""
    return torch.minimum(a, b).sum((-2, -1)) / torch.maximum(a, b).sum((-2, -1)).clamp_min(1e-6)
