"""DINOv2 and CLIP from local directories in transformers' layout (config.json and *.safetensors).

Images are resized by antialiased bicubic interpolation in float32 and normalised as each network was trained. DINOv2
gives its class token (FD-DINOv2: Stein et al., arXiv 2306.04675); CLIP its projected embedding at unit length, as CMMD
wants it. Other resizers give slightly other values, so the resize stands in the protocol.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from fgm.evaluation.features.extractor import NetworkExtractor, three_channels
from fgm.utils.pretrained import hash_of_directory, load_transformers

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


class Dinov2(NetworkExtractor):
    """Images of any size -> the class token, 1024 features for facebook/dinov2-large.

    Args:
        directory: of config.json and the weights.
        size: that images are resized to.
        device: auto, cpu or cuda.
    """

    def __init__(self, directory: Path | str, size: int = 224, device: str = "auto") -> None:
        net = load_transformers("Dinov2Model", directory, "facebook/dinov2-large")
        self.size = size
        super().__init__(
            "dinov2", hash_of_directory(directory), net.config.hidden_size, net, device, f"bicubic to {size}"
        )

    def run(self, images: Tensor) -> tuple[Tensor, None]:
        return self.net(prepared(images, self.size, IMAGENET)).last_hidden_state[:, 0], None


class Clip(NetworkExtractor):
    """Images of any size -> embeddings of unit length, 768 features for openai/clip-vit-large-patch14-336.

    Args:
        directory: of config.json and the weights.
        device: auto, cpu or cuda.
    """

    def __init__(self, directory: Path | str, device: str = "auto") -> None:
        published = "openai/clip-vit-large-patch14-336"
        net = load_transformers("CLIPVisionModelWithProjection", directory, published)
        self.size = net.config.image_size
        resize = f"bicubic to {self.size}"
        super().__init__("clip", hash_of_directory(directory), net.config.projection_dim, net, device, resize)

    def run(self, images: Tensor) -> tuple[Tensor, None]:
        return normalize(self.net(prepared(images, self.size, OPENAI)).image_embeds), None


def prepared(images: Tensor, size: int, statistics: Statistics) -> Tensor:
    """uint8 to normalised float32 (n, 3, size, size)."""
    pixels = three_channels(images).float() / 255
    pixels = interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(s, device=images.device).view(3, 1, 1) for s in statistics)
    return (pixels - mean) / std
