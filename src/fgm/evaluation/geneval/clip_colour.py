"""Colours by CLIP (Radford et al., arXiv 2103.00020), zero-shot, as GenEval names them.

    text     per colour c and class X the unit vectors of "a photo of a c X", "a photo of a c-colored X" and "a photo of
             a c object", averaged and made unit again
    image    pixels outside the mask to grey #999, cropped to the box, shorter side to CLIP's size (bicubic), its
             middle square, CLIP's mean and std; an elongated object is judged by its middle
    colour   the one whose text has the largest cosine with the image

Without a mask the box is cropped as it is. The official evaluator runs open_clip's ViT-L-14 in float16; the weights in
mind here, openai/clip-vit-large-patch14, are the same ones, and run in float32.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from fgm.data.text.geneval.vocabulary import COLOURS
from fgm.evaluation.features.transformer import OPENAI
from fgm.evaluation.geneval.detections import Detection, Pixels
from fgm.utils.pretrained import CLIP, hash_of_directory, load_transformers, require_directory
from fgm.utils.validation import validated

TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
MEAN, STD = OPENAI
GREY = 0x99


@validated
class ClipColours:
    """One of the ten colours for each object.

    Args:
        directory: holds the network's config and weights and its tokenizer.
    """

    def __init__(self, directory: Path | str | None, device: str = "cpu") -> None:
        folder = require_directory(directory, ("config.json",), CLIP)
        if not (folder / "tokenizer.json").exists():
            require_directory(folder, ("vocab.json", "merges.txt"), CLIP)
        self.net = load_transformers("CLIPModel", folder, CLIP).to(device)
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.device, self.size = device, self.net.config.vision_config.image_size
        self.protocol = f"CLIP colours {hash_of_directory(folder)}"
        self.texts = cache(self.embed_texts)

    def classify(self, image: Pixels, detections: Sequence[Detection]) -> list[str]:
        return [COLOURS[int(self.cosines(image, detection).argmax())] for detection in detections]

    @torch.inference_mode()
    def cosines(self, image: Pixels, detection: Detection) -> Tensor:
        """(colours,)."""
        pixels = preprocess(cut_out(image, detection), self.size).to(self.device)
        seen = self.net.visual_projection(self.net.vision_model(pixel_values=pixels).pooler_output)
        return (normalize(seen, dim=-1) @ self.texts(detection.cls).T)[0]

    @torch.inference_mode()
    def embed_texts(self, name: str) -> Tensor:
        """Unit vectors (colours, d)."""
        texts = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
        read = self.net.text_projection(self.net.text_model(**tokens).pooler_output)
        by_colour = normalize(read, dim=-1).unflatten(0, (len(COLOURS), len(TEMPLATES)))
        return normalize(by_colour.mean(1), dim=-1)


def cut_out(image: Pixels, detection: Detection) -> Pixels:
    """The object before grey, cropped to its box; never empty, and within the image."""
    if detection.mask is not None:
        image = np.where(detection.mask[..., None], image, np.uint8(GREY))
    h, w = image.shape[:2]
    x_0, y_0, x_1, y_1 = map(round, detection.box)
    left, upper = min(max(x_0, 0), w - 1), min(max(y_0, 0), h - 1)
    return image[upper : max(y_1, upper + 1), left : max(x_1, left + 1)]


def preprocess(image: Pixels, size: int) -> Tensor:
    """uint8 (h, w, 3) to CLIP's input (1, 3, size, size)."""
    whole: Any = Image.fromarray(image)  # torchvision takes PIL's images too, and CLIP was trained on their resize
    square = center_crop(resize(whole, [size], InterpolationMode.BICUBIC), [size, size])
    x = pil_to_tensor(square).float() / 255
    return ((x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])[None]
