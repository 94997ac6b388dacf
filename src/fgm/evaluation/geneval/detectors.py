"""GenEval's two networks, from published weights that users provide: Mask2Former finds objects, CLIP names colors.

Mask2Former (Cheng et al., arXiv 2112.01527), with the pre- and post-processing of the official evaluator's mmdet:

    in      shorter side to 800 pixels, longer to at most 1333, bilinear; ImageNet's mean and std; zeros to the right
            and below up to a multiple of 32
    out     p = softmax over classes, per query, without the last one ("no object")
            the 100 largest p over all queries and classes
            mask logits to the padded size, cropped, then to the image's size, bilinear;  mask: logit > 0
            score = p x mean of sigmoid(logit) inside the mask;  box: tight around the mask

The post-processing of transformers differs: masks of 384 x 384, p > 0.5, no boxes. Labels are read by index 0..79, since
checkpoints spell COCO's names differently. facebook/mask2former-swin-small-coco-instance has the official architecture
but comes from ANOTHER TRAINING RUN: its scores compare only within this suite.

CLIP (Radford et al., arXiv 2103.00020), zero-shot:

    text    for color c and class X the unit vectors of "a photo of a c X", "a photo of a c-colored X" and "a photo of
            a c object", averaged and normalized again
    image   pixels outside the mask to gray #999, cropped to the box, shorter side to CLIP's size (bicubic), center
            square, CLIP's mean and std; elongated objects are judged by their middle
    color   the one whose text has the largest cosine with the image

The official evaluator runs open_clip's ViT-L-14 in float16; openai/clip-vit-large-patch14 has the same weights, and runs
in float32 here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, pil_to_tensor
from torchvision.transforms.functional import resize as resize_shorter_side

from fgm.data.geneval import COLORS, OBJECTS
from fgm.evaluation.geneval.rules import Detection, Pixels
from fgm.evaluation.pretrained_features import OPENAI
from fgm.utils.errors import UserError
from fgm.utils.pretrained import CLIP, MASK2FORMER, hash_of_directory, load_transformers, require_directory
from fgm.utils.validation import validated

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
DIVISOR = 32
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
GRAY = 0x99


@dataclass(frozen=True)
class Geometry:
    """Heights and widths of an image, of the image as resized, and of it as padded."""

    image: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def of(cls, image: tuple[int, int], short_side: int, long_side: int) -> "Geometry":
        scale = min(short_side / min(image), long_side / max(image))
        h, w = (int(side * scale + 0.5) for side in image)
        return cls(image, (h, w), (-(-h // DIVISOR) * DIVISOR, -(-w // DIVISOR) * DIVISOR))

    def prepare(self, x: Tensor) -> Tensor:
        """Turn a uint8 image (h, w, 3) into the network's input (1, 3, *padded)."""
        x = resize(x.movedim(-1, 0).float(), self.resized)
        x = (x - x.new_tensor(IMAGENET_MEAN)[:, None, None]) / x.new_tensor(IMAGENET_STD)[:, None, None]
        (h, w), (height, width) = self.resized, self.padded
        return pad(x, (0, width - w, 0, height - h))[None]

    def restore(self, mask_logits: Tensor) -> Tensor:
        """Resize mask logits (n, *any) to the image, (n, *image)."""
        h, w = self.resized
        return resize(resize(mask_logits, self.padded)[:, :h, :w], self.image)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (n, h, w) to (n, *size), bilinear without antialiasing as in the official evaluator."""
    return interpolate(x[None], size, mode="bilinear", align_corners=False)[0]


@validated
class Mask2FormerDetector:
    """Detects objects of the 80 classes, with masks.

    Args:
        directory: with the network's config and weights.
        floor: least class probability of a detection; rules with a higher threshold do not notice it.
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
        folder = require_directory(directory, ("config.json",), MASK2FORMER, "evaluation.suite.detector.directory")
        self.net = load_transformers("Mask2FormerForUniversalSegmentation", folder, MASK2FORMER).to(device)
        labels = self.net.config.num_labels
        if labels != len(OBJECTS):
            raise UserError(f"{folder}: the network has {labels} classes, not COCO's {len(OBJECTS)}; use {MASK2FORMER}")
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
    """Turn class logits (queries, classes + 1) and mask logits (queries, h, w) into detections with non-empty masks."""
    p = class_logits.softmax(-1)[:, :-1]
    best = p.flatten().topk(min(top, p.numel()))
    chosen = best.indices[best.values > floor]
    queries, labels = chosen // p.shape[1], chosen % p.shape[1]
    logits = geometry.restore(mask_logits[queries]) if len(chosen) else mask_logits[:0]
    found = []
    for query, label, mask_logit in zip(queries, labels, logits, strict=True):
        mask = mask_logit > 0
        rows, columns = (torch.nonzero(mask.any(axis)).flatten().tolist() for axis in (1, 0))
        if rows:
            box = (float(columns[0]), float(rows[0]), columns[-1] + 1.0, rows[-1] + 1.0)
            score = min(float(p[query, label]) * float(mask_logit[mask].sigmoid().mean()), 1.0)
            found.append(Detection(OBJECTS[int(label)], box, score, mask.cpu().numpy()))
    return found


@validated
class CLIPColors:
    """Classifies the color of an object, as one of GenEval's ten.

    Args:
        directory: with the network's config and weights and its tokenizer.
    """

    def __init__(self, directory: Path | str | None, device: str = "cpu") -> None:
        folder = require_directory(directory, ("config.json",), CLIP, "evaluation.suite.colors.directory")
        if not (folder / "tokenizer.json").exists():
            require_directory(folder, ("vocab.json", "merges.txt"), CLIP)
        self.net = load_transformers("CLIPModel", folder, CLIP).to(device)
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.device, self.size = device, self.net.config.vision_config.image_size
        self.protocol = f"CLIP colors {hash_of_directory(folder)}"
        self.texts = cache(self.embed_texts)

    def classify(self, image: Pixels, detections: Sequence[Detection]) -> list[str]:
        return [COLORS[int(self.cosines(image, detection).argmax())] for detection in detections]

    @torch.inference_mode()
    def cosines(self, image: Pixels, detection: Detection) -> Tensor:
        """Return the cosines of an object with the texts of all colors, (10,)."""
        x = preprocess(cut_out(image, detection), self.size).to(self.device)
        embedding = self.net.visual_projection(self.net.vision_model(pixel_values=x).pooler_output)
        return (normalize(embedding, dim=-1) @ self.texts(detection.cls).T)[0]

    @torch.inference_mode()
    def embed_texts(self, name: str) -> Tensor:
        """Return unit vectors (10, d) of the colors of a class."""
        texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
        embeddings = self.net.text_projection(self.net.text_model(**tokens).pooler_output)
        by_color = normalize(embeddings, dim=-1).unflatten(0, (len(COLORS), len(TEMPLATES)))
        return normalize(by_color.mean(1), dim=-1)


def cut_out(image: Pixels, detection: Detection) -> Pixels:
    """Return the object on gray (as it is without a mask), cropped to its box within the image; never empty."""
    if detection.mask is not None:
        image = np.where(detection.mask[..., None], image, np.uint8(GRAY))
    h, w = image.shape[:2]
    x_0, y_0, x_1, y_1 = map(round, detection.box)
    left, upper = min(max(x_0, 0), w - 1), min(max(y_0, 0), h - 1)
    return image[upper : max(y_1, upper + 1), left : max(x_1, left + 1)]


def preprocess(image: Pixels, size: int) -> Tensor:
    """Turn a uint8 image (h, w, 3) into CLIP's input (1, 3, size, size)."""
    picture: Any = Image.fromarray(image)  # torchvision takes PIL's images too, and CLIP was trained on their resize
    square = center_crop(resize_shorter_side(picture, [size], InterpolationMode.BICUBIC), [size, size])
    mean, std = (torch.tensor(values)[:, None, None] for values in OPENAI)
    return ((pil_to_tensor(square).float() / 255 - mean) / std)[None]
