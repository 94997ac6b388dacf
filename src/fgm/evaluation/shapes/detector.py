"""An exact detector for renders of shapes: it needs no weights and no training, and makes no error on true renders.

1. Segmentation: which pixels stand out of a uniform background, and how opaque are they?

    background  B, the median of the outermost pixels
    foreground  |I - B| > max(FLOOR, half of its maximum within 5 x 5 pixels), so that blurred neighbors stay apart
    blob        a 4-connected component of the foreground with at least LEAST pixels; smaller ones are stray
    color       C, the median of the blob's pixels that differ from B by at least CORE of its maximum
    alpha       <I - B, C - B> / |C - B|^2 within [0, 1], on pixels nearest to this blob and within REACH of it

Alpha includes a blob's blurred rim: a blur keeps its area and its center of mass. Values below FAINT become 0.

2. Fit: alpha against the coverage T_s of each shape s of the same area and center of mass,

    r_s = (sum alpha / A_s)^1/2        center_s = sum p alpha(p) / sum alpha - r_s m_s

with A_s the area and m_s the center of mass of s at radius 1, blurred by Gaussians of the standard deviations BLURS:

    soft IoU = sum min(alpha, T) / sum max(alpha, T)

The best template is the fit, and its soft IoU the score. A blob of a score below ACCEPT is unexplained. Its class and
box are the template's, its color is the palette's nearest. Over images:

    parse_rate  share of images with at least one blob in which every blob is explained
    stray       share of the pixels that differ from the background, over all images, beyond REACH of explained blobs
    crispness   mean over detections of the soft IoU with the unblurred template of the same class, if there are any
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from torch import Tensor

from fgm.data.geneval import COLORS
from fgm.data.pixels import quantise
from fgm.data.shapes.captions import EASY, PALETTE, SHAPES
from fgm.data.shapes.scenes import AREAS, CENTROIDS, coverage
from fgm.evaluation import Features
from fgm.evaluation.geneval.rules import Detection
from fgm.utils.records import Measurement
from fgm.utils.validation import validated

Bools, Floats = NDArray[np.bool_], NDArray[np.float32]

FLOOR, CORE, REACH, FAINT, LEAST = 32.0, 0.8, 3.0, 0.1, 10  # FLOOR in levels of 255, REACH and LEAST in pixels
BLURS = (0.0, 0.5, 1.0, 1.5)  # standard deviations in pixels
BATCH = 64  # images whose blobs are fitted at once
ACCEPT = 0.7  # least soft IoU of an object


@dataclass(frozen=True)
class Blob:
    """One connected object: mask and region bool (h, w), color (3,) 0 to 255, alpha (h, w)."""

    mask: Bools
    region: Bools
    color: Floats
    alpha: Floats


@dataclass(frozen=True)
class Fit:
    """The best template of a blob; score is its soft IoU, crispness the one of the same shape without blur."""

    shape: int
    x: float
    y: float
    radius: float
    score: float
    crispness: float


@dataclass(frozen=True)
class Reading:
    """One image: its objects and their crispness, and its numbers of blobs, visible pixels and stray pixels."""

    detections: list[Detection]
    crispness: list[float]
    blobs: int
    visible: int
    stray: int


@validated
@dataclass(frozen=True)
class ShapeDetector:
    """Detects the shapes of an image.

    Args:
        shapes: number of shapes to distinguish; 6 is hard mode.
    """

    shapes: Annotated[int, Field(ge=1, le=6)] = EASY

    @property
    def protocol(self) -> str:
        return f"soft-fit detector of {self.shapes} shapes, soft IoU >= {ACCEPT:g}, blobs >= {LEAST} pixels"

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        """Detect the objects of one image (h, w, 3)."""
        return self.read_pixels(image[None])[0].detections

    def read(self, images: Tensor) -> list[Reading]:
        """Read images (n, 3, h, w), uint8 or in [-1, 1]."""
        pixels = quantise(images).permute(0, 2, 3, 1).cpu().numpy()
        return [reading for i in range(0, len(pixels), BATCH) for reading in self.read_pixels(pixels[i : i + BATCH])]

    def read_pixels(self, pixels: NDArray[np.uint8]) -> list[Reading]:
        """Read images (n, h, w, 3); the blobs of all of them are fitted at once."""
        segments = [segment(image) for image in pixels]
        fits = iter(fit([blob for blobs, _ in segments for blob in blobs], self.shapes))
        readings = []
        for blobs, visible in segments:
            explained = [(blob, best) for blob in blobs if (best := next(fits)).score >= ACCEPT]
            stray = visible & ~np.logical_or.reduce([np.zeros_like(visible), *(blob.region for blob, _ in explained)])
            detections = [to_detection(blob, best) for blob, best in explained]
            crispness = [best.crispness for _, best in explained]
            readings.append(Reading(detections, crispness, len(blobs), int(visible.sum()), int(stray.sum())))
        return readings


def segment(pixels: NDArray[np.uint8]) -> tuple[list[Blob], Bools]:
    """Return the blobs of an image (h, w, 3), and all that stands out of its background, bool (h, w)."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    background = np.median(border, axis=0).astype(np.float32)
    distance = np.linalg.norm(pixels - background, axis=2)
    foreground = distance > np.maximum(FLOOR, 0.5 * ndimage.maximum_filter(distance, 5))
    components, _ = ndimage.label(foreground)
    large = np.bincount(components.ravel()) >= LEAST
    large[0] = False
    labels = np.where(large, large.cumsum(), 0).astype(np.int32)[components]  # 1, 2, ... of blobs
    nearest = labels  # label of each pixel's nearest blob within REACH
    if labels.any():
        transform: Any = ndimage.distance_transform_edt(labels == 0, return_indices=True)
        away, (row, column) = transform
        nearest = np.where(away <= REACH, labels[row, column], 0)
    blobs = []
    for label in range(1, labels.max() + 1):
        mask, region = labels == label, nearest == label
        core = mask & (distance >= CORE * distance[mask].max())
        color = np.median(pixels[core], axis=0).astype(np.float32)
        contrast = color - background
        alpha = ((pixels - background) @ contrast / (contrast @ contrast)).clip(0, 1) * region
        blobs.append(Blob(mask, region, color, np.where(alpha < FAINT, 0, alpha).astype(np.float32)))
    return blobs, distance > FLOOR


def fit(blobs: Sequence[Blob], shapes: int) -> list[Fit]:
    """Fit the first `shapes` shapes to blobs from images of one size."""
    if not blobs:
        return []
    alpha = torch.from_numpy(np.stack([blob.alpha for blob in blobs]))
    shape, rows = torch.arange(shapes).expand(len(blobs), -1), torch.arange(len(blobs))
    center, radius = moments(alpha, shape)
    templates = coverage(shape, center, radius, alpha.shape[-1])[..., None, :, :]
    blur = torch.stack([gaussian(alpha.shape[-1], std) for std in BLURS])
    ious = soft_iou(alpha[:, None, None], blur @ templates @ blur.mT)  # (blobs, shapes, BLURS)
    score, best = ious.amax(2).max(1)
    columns = (best, *center[rows, best].T, radius[rows, best], score, ious[rows, best, 0])
    return [Fit(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def moments(alpha: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """Return centers (n, k, 2), radii (n, k) at which shapes (n, k) have area and center of mass of alpha (n, h, w)."""
    area = alpha.sum((1, 2)).clamp_min(1e-6)
    x = (alpha.sum(1) @ (torch.arange(alpha.shape[2]) + 0.5)) / area
    y = (alpha.sum(2) @ (torch.arange(alpha.shape[1]) + 0.5)) / area
    radius = (area[:, None] / AREAS[shape]).sqrt()
    return torch.stack([x[:, None].expand_as(radius), y[:, None] - radius * CENTROIDS[shape]], -1), radius


def gaussian(size: int, std: float) -> Tensor:
    """Return the convolution with a sampled Gaussian as a matrix (size, size); the identity at std = 0."""
    offset = torch.arange(size)[:, None] - torch.arange(size).float()
    weight = torch.exp(-offset.square() / (2 * max(std, 1e-3) ** 2))
    return weight / weight.sum(0).max()


def soft_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the soft IoU over the last two axes."""
    return torch.minimum(a, b).sum((-2, -1)) / torch.maximum(a, b).sum((-2, -1)).clamp_min(1e-6)


def to_detection(blob: Blob, best: Fit) -> Detection:
    x, y, r = best.x, best.y, best.radius
    color = COLORS[int(np.linalg.norm(PALETTE.numpy() - blob.color, axis=1).argmin())]
    return Detection(SHAPES[best.shape], (x - r, y - r, x + r, y + r), min(best.score, 1.0), blob.mask, color)


def legibility_features(readings: Sequence[Reading]) -> Features:
    """Return, for each image, numbers of blobs, objects, visible and stray pixels, and summed crispness."""
    counts = {"blobs": [r.blobs for r in readings], "objects": [len(r.detections) for r in readings]}
    counts |= {"visible": [r.visible for r in readings], "stray": [r.stray for r in readings]}
    features = {name: torch.tensor(values, dtype=torch.int64) for name, values in counts.items()}
    return features | {"crispness": torch.tensor([sum(r.crispness) for r in readings], dtype=torch.float32)}


def legibility(features: Features, protocol: str) -> list[Measurement]:
    """Return parse_rate, stray and crispness of at least one image."""
    objects, blobs = features["objects"], features["blobs"]
    values = {"parse_rate": ((objects == blobs) & (blobs > 0)).double().mean()}
    values |= {"stray": features["stray"].sum() / features["visible"].sum().clamp_min(1)}
    values |= {"crispness": features["crispness"].double().sum() / objects.sum()} if objects.sum() else {}
    return [Measurement(metric, value.item(), len(blobs), protocol) for metric, value in values.items()]
