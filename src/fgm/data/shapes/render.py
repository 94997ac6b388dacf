"""Scenes to images by the exact area that a shape covers in every pixel.

A shape is symmetric about its vertical axis: its half-width w(y), with y in [-1, 1] pointing down, defines it.

    circle    (1 - y^2)^1/2        triangle  (1 + y) / 2                         diamond  1 - |y|
    square    1                    cross     1 where |y| < 1/3, else 1/3         ring     circle less one of radius 1/2

It is cut into STRIPS of equal height and constant width, the mean of w over the strip. A strip is a rectangle, and the
area of a rectangle within a pixel is a product of two overlaps, so that the coverage of all pixels is a matrix product:

    coverage[y, x] = sum_m overlap([row y], [strip m]) overlap([column x], [-w_m, w_m])

Strips are at most a quarter of a pixel high at 32 pixels and half of one at 64; STRIPS is a multiple of 3, so that the
arms of a cross end at a strip's border. Areas, and squares and crosses altogether, are exact.
"""

import torch
from torch import Tensor

from fgm.data.shapes.scenes import Scenes

BACKGROUND = 128.0
STRIPS = 48
CHUNK = 64  # scenes at once: what fits in a core's cache is three times as fast


def half_widths(y: Tensor) -> Tensor:
    """w(y) of all shapes, (6, *y.shape)."""
    disc, bar = (1 - y.square()).clamp_min(0).sqrt(), torch.where(y.abs() < 1 / 3, 1.0, 1 / 3)
    return torch.stack([disc, torch.ones_like(y), (1 + y) / 2, bar, 1 - y.abs(), disc])


def strip_means(width: Tensor) -> Tensor:
    return width.unflatten(-1, (STRIPS, -1)).mean(-1).float()


FINE = (torch.arange(STRIPS * 256, dtype=torch.float64) + 0.5) / (STRIPS * 128) - 1
OUTER = strip_means(half_widths(FINE))  # (6, STRIPS)
HOLES = torch.zeros_like(OUTER)
HOLES[5] = strip_means((0.25 - FINE.square()).clamp_min(0).sqrt())
STRIP_EDGES = torch.linspace(-1, 1, STRIPS + 1)
STRIP_AREAS = 4 / STRIPS * (OUTER - HOLES)
AREAS = STRIP_AREAS.sum(1)  # (6,) at radius 1
CENTROIDS = (STRIP_AREAS * (STRIP_EDGES[1:] + STRIP_EDGES[:-1]) / 2).sum(1) / AREAS  # (6,) y of the centre of mass


def overlap(low: Tensor, high: Tensor, size: int) -> Tensor:
    """Length of [low, high] within each pixel [i, i + 1]: (*) to (*, size)."""
    pixel = torch.arange(size, dtype=low.dtype, device=low.device)
    low, high = low[..., None].clamp_min(pixel), high[..., None].clamp_max(pixel + 1)
    return (high - low).clamp_min_(0)


def coverage(shape: Tensor, centre: Tensor, radius: Tensor, size: int) -> Tensor:
    """Share of each pixel that a shape covers: shape (*), centre (*, 2), radius (*) to (*, size, size)."""
    x, y, radius = centre[..., :1], centre[..., 1:], radius[..., None]
    widths, holes, edges = (table.to(x.device) for table in (OUTER[shape], HOLES[shape], STRIP_EDGES))
    edges = y + radius * edges
    rows = overlap(edges[..., :-1], edges[..., 1:], size)
    columns = overlap(x - radius * widths, x + radius * widths, size)
    if holes.any():
        columns -= overlap(x - radius * holes, x + radius * holes, size)
    return rows.mT @ columns


def render(scenes: Scenes, size: int = 32) -> Tensor:
    """Images (n, 3, size, size) in [-1, 1]."""
    starts = range(0, len(scenes), CHUNK)
    chunks = [render_chunk(scenes[start : start + CHUNK], size) for start in starts]
    return torch.cat(chunks) if chunks else torch.empty(0, 3, size, size)


def render_chunk(scenes: Scenes, size: int) -> Tensor:
    """Objects do not overlap, so that their coverages add."""
    present = scenes.shape >= 0
    covered = torch.zeros(*present.shape, size, size)
    covered[present] = coverage(scenes.shape[present], scenes.centre[present], scenes.radius[present], size)
    pixels = BACKGROUND + (scenes.rgb - BACKGROUND).mT @ covered.flatten(2)
    return (pixels / 127.5 - 1).unflatten(2, (size, size))
