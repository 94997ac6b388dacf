"""Mask2Former (Cheng et al., arXiv 2112.01527) as detector, with the post-processing of the official evaluator's mmdet.

    in      shorter side to 800 pixels, longer to at most 1333, bilinear; ImageNet's mean and std; zeros to the right
            and below up to a multiple of 32
    out     p = softmax over classes, per query, the last one ("no object") left out
            the 100 largest p over all queries and classes
            mask logits to the padded size, cropped, then to the image's size, bilinear;  mask: logit > 0
            score = p x mean of sigmoid(logit) inside the mask;  box: the mask's tight one

transformers' own post-processing would do otherwise: masks of 384 x 384, p > 0.5, no boxes. Labels are read by index
0..79, since checkpoints spell COCO's names differently. The weights in mind, facebook/mask2former-swin-small-coco-
instance, are of the official architecture but ANOTHER TRAINING RUN: scores compare within this suite.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import interpolate, pad

from fgm.data.text.geneval.vocabulary import OBJECTS
from fgm.evaluation.geneval.detections import Detection, Pixels
from fgm.utils.errors import UserError
from fgm.utils.pretrained import MASK2FORMER, hash_of_directory, load_transformers, require_directory
from fgm.utils.validation import validated

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
DIVISOR = 32


@dataclass(frozen=True)
class Geometry:
    """(h, w) of the image, of the image as resized, and of it as padded."""

    image: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def of(cls, image: tuple[int, int], short_side: int, long_side: int) -> "Geometry":
        scale = min(short_side / min(image), long_side / max(image))
        h, w = (int(side * scale + 0.5) for side in image)
        return cls(image, (h, w), (-(-h // DIVISOR) * DIVISOR, -(-w // DIVISOR) * DIVISOR))

    def prepare(self, x: Tensor) -> Tensor:
        """uint8 (h, w, 3) to the network's input (1, 3, *padded)."""
        x = resize(x.movedim(-1, 0).float(), self.resized)
        x = (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]
        (h, w), (height, width) = self.resized, self.padded
        return pad(x, (0, width - w, 0, height - h))[None]

    def restore(self, mask_logits: Tensor) -> Tensor:
        """(n, *any) to (n, *image)."""
        h, w = self.resized
        return resize(resize(mask_logits, self.padded)[:, :h, :w], self.image)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, h, w) to (n, *size), bilinear, without antialiasing, as the official evaluator's."""
    return interpolate(x[None], size, mode="bilinear", align_corners=False)[0]


@validated
class Mask2FormerDetector:
    """Objects of the 80 classes, with masks.

    Args:
        directory: holds the network's config and weights.
        floor: classes of at most this probability are left out. No rule with a higher threshold notices.
    """

    def __init__(
        self,
        directory: Path | str | None,
        device: str = "cpu",
        short_side: Annotated[int, Field(ge=32)] = 800,
        long_side: Annotated[int, Field(ge=32)] = 1333,
        top: PositiveInt = 100,
        floor: Annotated[float, Field(ge=0, lt=1)] = 0.05,
    ) -> None:
        folder = require_directory(directory, ("config.json",), MASK2FORMER)
        self.net = load_transformers("Mask2FormerForUniversalSegmentation", folder, MASK2FORMER).to(device)
        labels = self.net.config.num_labels
        if labels != len(OBJECTS):
            raise UserError(
                f"{directory}: a network of {labels} classes, not COCO's {len(OBJECTS)}; put {MASK2FORMER} there"
            )
        self.device, self.sides, self.top, self.floor = device, (short_side, long_side), top, floor
        self.protocol = f"Mask2Former {hash_of_directory(folder)}, sides {short_side} to {long_side}, top {top}"

    @torch.inference_mode()
    def detect(self, image: Pixels) -> list[Detection]:
        geometry = Geometry.of(image.shape[:2], *self.sides)
        output = self.net(pixel_values=geometry.prepare(torch.tensor(image, device=self.device)))
        classes, masks = output.class_queries_logits[0].float(), output.masks_queries_logits[0].float()
        return postprocess(classes, masks, geometry, self.top, self.floor)


def postprocess(
    class_logits: Tensor, mask_logits: Tensor, geometry: Geometry, top: int = 100, floor: float = 0.0
) -> list[Detection]:
    """Class logits (queries, classes + 1) and mask logits (queries, h, w) to detections; empty masks are none."""
    p = class_logits.softmax(-1)[:, :-1]
    chosen = p.flatten().topk(min(top, p.numel()))
    kept = chosen.indices[chosen.values > floor]
    queries, labels = kept // p.shape[1], kept % p.shape[1]
    logits = geometry.restore(mask_logits[queries]) if len(kept) else mask_logits[:0]
    found = [detection(OBJECTS[c], float(p[q, c]), mask) for q, c, mask in zip(queries, labels, logits, strict=True)]
    return [one for one in found if one is not None]


def detection(name: str, p: float, logits: Tensor) -> Detection | None:
    """From one mask's logits (h, w)."""
    mask = logits > 0
    rows, columns = (torch.nonzero(mask.any(axis)).flatten().tolist() for axis in (1, 0))
    if not rows:
        return None
    inside = float(logits[mask].sigmoid().mean())
    box = (float(columns[0]), float(rows[0]), columns[-1] + 1.0, rows[-1] + 1.0)
    return Detection(name, box, min(p * inside, 1.0), mask.cpu().numpy())
