"""An exact detector for renders of shapes: no weights, no training, and right on the truth by construction.

shape_segments finds blobs and shape_fit the best template of each: its class, and its soft IoU as the score. A blob
whose score is below ACCEPT is unexplained. Box: the template's. Colour: the palette's nearest to the blob's.

    parse_rate  share of images with at least one blob in which every blob is explained
    stray       share of the pixels that differ from the background, over all images, beyond REACH of explained blobs
    crispness   mean over detections of the soft IoU with the unblurred template of the same class, if there are any
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fgm.data.pixels import quantise
from fgm.data.text.shapes.vocabulary import COLOUR_NAMES, EASY, PALETTE, SHAPE_NAMES
from fgm.evaluation import Features
from fgm.evaluation.geneval.detections import Detection
from fgm.evaluation.shape_fit import Fit, fit
from fgm.evaluation.shape_segments import LEAST, Blob, Bools, segment
from fgm.utils.records import Measurement
from fgm.utils.validation import validated

BATCH = 64  # images whose blobs are fitted at once
ACCEPT = 0.7  # least soft IoU of an object


@dataclass(frozen=True)
class Reading:
    """What is in one image: objects, the crispness of each, and numbers of blobs, visible pixels and stray pixels."""

    detections: list[Detection]
    crispness: list[float]
    blobs: int
    visible: int
    stray: int


@validated
@dataclass(frozen=True)
class ShapeDetector:
    """Finds the shapes of an image.

    Args:
        shapes: how many of the vocabulary's are looked for; 6 is hard mode.
    """

    shapes: Annotated[int, Field(ge=1, le=6)] = EASY

    @property
    def protocol(self) -> str:
        return f"soft-fit detector of {self.shapes} shapes, soft IoU >= {ACCEPT:g}, blobs >= {LEAST} pixels"

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        """Of one image (h, w, 3)."""
        return self.read_pixels(image[None])[0].detections

    def read(self, images: Tensor) -> list[Reading]:
        """Of images (n, 3, h, w) in [-1, 1], quantised as a PNG would be."""
        pixels = quantise(images).permute(0, 2, 3, 1).cpu().numpy()
        return [reading for i in range(0, len(pixels), BATCH) for reading in self.read_pixels(pixels[i : i + BATCH])]

    def read_pixels(self, pixels: NDArray[np.uint8]) -> list[Reading]:
        """Of images (n, h, w, 3); the blobs of all of them are fitted at once."""
        segments = [segment(image) for image in pixels]
        fits = iter(fit([blob for s in segments for blob in s.blobs], self.shapes))
        return [self.reading([(b, next(fits)) for b in s.blobs], s.visible) for s in segments]

    def reading(self, found: Sequence[tuple[Blob, Fit]], visible: Bools) -> Reading:
        explained = [(blob, best) for blob, best in found if best.score >= ACCEPT]
        stray = visible & ~np.logical_or.reduce([np.zeros_like(visible), *(blob.region for blob, _ in explained)])
        detections, crispness = [detection(*pair) for pair in explained], [best.crispness for _, best in explained]
        return Reading(detections, crispness, len(found), int(visible.sum()), int(stray.sum()))


def detection(blob: Blob, best: Fit) -> Detection:
    x, y, r = best.x, best.y, best.radius
    colour = COLOUR_NAMES[int(np.linalg.norm(PALETTE.numpy() - blob.colour, axis=1).argmin())]
    return Detection(SHAPE_NAMES[best.shape], (x - r, y - r, x + r, y + r), min(best.score, 1.0), blob.mask, colour)


def legible(readings: Sequence[Reading]) -> Features:
    """What legibility() needs of each image: numbers of blobs, objects, visible and stray pixels, summed crispness."""
    counts = {"blobs": [r.blobs for r in readings], "objects": [len(r.detections) for r in readings]}
    counts |= {"visible": [r.visible for r in readings], "stray": [r.stray for r in readings]}
    features = {name: torch.tensor(values, dtype=torch.int64) for name, values in counts.items()}
    return features | {"crispness": torch.tensor([sum(r.crispness) for r in readings], dtype=torch.float32)}


def legibility(features: Features, protocol: str) -> list[Measurement]:
    """parse_rate, stray and crispness of at least one image."""
    objects, blobs = features["objects"], features["blobs"]
    values = {"parse_rate": ((objects == blobs) & (blobs > 0)).double().mean()}
    values |= {"stray": features["stray"].sum() / features["visible"].sum().clamp_min(1)}
    values |= {"crispness": features["crispness"].double().sum() / objects.sum()} if objects.sum() else {}
    return [Measurement(metric, value.item(), len(blobs), protocol) for metric, value in values.items()]
