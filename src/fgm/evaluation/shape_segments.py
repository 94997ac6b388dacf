"""From pixels to blobs: what stands out of a uniform background, and how opaquely.

    background  B, the median of the outermost pixels
    foreground  |I - B| > max(FLOOR, half of its maximum within 5 x 5 pixels), so that blurred neighbours stay apart
    blob        a 4-connected component of the foreground, at least LEAST pixels large, smaller ones are stray
    colour      C, the median of the blob's pixels that differ from B by at least CORE of its maximum
    alpha       <I - B, C - B> / |C - B|^2 within [0, 1], on pixels nearest to this blob and within REACH of it

Alpha spans a blob's blurred rim, whose area and centre of mass a blur leaves as they are. Values below FAINT are cut.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Bools, Floats = NDArray[np.bool_], NDArray[np.float32]

FLOOR, CORE, REACH, FAINT, LEAST = 32.0, 0.8, 3.0, 0.1, 10  # FLOOR in levels of 255, REACH and LEAST in pixels


@dataclass(frozen=True)
class Blob:
    """One connected object: mask and region bool (h, w), colour (3,) 0 to 255, alpha (h, w)."""

    mask: Bools
    region: Bools
    colour: Floats
    alpha: Floats


@dataclass(frozen=True)
class Segments:
    """The blobs of an image and all that stands out of its background, bool (h, w)."""

    blobs: list[Blob]
    visible: Bools


def segment(pixels: NDArray[np.uint8]) -> Segments:
    """Of an image (h, w, 3)."""
    behind = background(pixels)
    distance = np.linalg.norm(pixels - behind, axis=2)
    foreground = distance > np.maximum(FLOOR, 0.5 * ndimage.maximum_filter(distance, 5))
    labels = large_components(foreground)
    nearest = nearest_labels(labels)
    blobs = [blob(pixels, behind, distance, labels == k, nearest == k) for k in range(1, labels.max() + 1)]
    return Segments(blobs, distance > FLOOR)


def background(pixels: NDArray[np.uint8]) -> Floats:
    """(3,)"""
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    return np.median(border, axis=0).astype(np.float32)


def large_components(foreground: Bools) -> NDArray[np.int32]:
    """Labels 1, 2, ... of the 4-connected components with at least LEAST pixels, 0 elsewhere."""
    labels, _ = ndimage.label(foreground)
    large = np.bincount(labels.ravel()) >= LEAST
    large[0] = False
    return np.where(large, large.cumsum(), 0).astype(np.int32)[labels]


def nearest_labels(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Each pixel's nearest label, 0 where none is within REACH."""
    if not labels.any():
        return labels
    nearest: Any = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    distance, (row, column) = nearest
    return np.where(distance <= REACH, labels[row, column], 0)


def blob(pixels: NDArray[np.uint8], behind: Floats, distance: Floats, mask: Bools, region: Bools) -> Blob:
    core = mask & (distance >= CORE * distance[mask].max())
    colour = np.median(pixels[core], axis=0).astype(np.float32)
    contrast = colour - behind
    alpha = ((pixels - behind) @ contrast / (contrast @ contrast)).clip(0, 1) * region
    return Blob(mask, region, colour, np.where(alpha < FAINT, 0, alpha).astype(np.float32))
