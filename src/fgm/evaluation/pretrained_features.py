"""Feature extractors with published weights, from local files; nothing is downloaded and nothing in them is executed.

Inception       the only features whose Fréchet distance is called FID
Dinov2, Clip    directories in transformers' layout (config.json, *.safetensors)
"""

from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from fgm.evaluation.features import NetworkExtractor, three_channels
from fgm.utils.errors import UserError
from fgm.utils.pickles import read_checkpoint, require_finite
from fgm.utils.pretrained import hash_of_checkpoint, hash_of_directory, inception_weights, load_transformers
from fgm.utils.validation import validated

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@validated
class Inception(NetworkExtractor):
    """Maps images of any size to the 2048 features and 1008 logits of TensorFlow's Inception-v3 of 2015.

    This is torch-fidelity's inception-v3-compat, layer 2048, whose bilinear resize to 299 x 299 repeats TensorFlow 1's.

    Args:
        weights: path of the state dict; None looks for the published name in $TORCH_HOME/hub/checkpoints.
        device: auto, cpu or cuda.
    """

    def __init__(self, weights: str | None = None, device: str = "auto") -> None:
        file = inception_weights(weights)
        state = resaved_tensors(file)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # seconds to import

        layers = ["2048", "logits_unbiased"]
        try:
            net = FeatureExtractorInceptionV3("inception-v3-compat", layers, feature_extractor_weights_path=state)
        except RuntimeError as error:
            raise UserError(
                f"{file} does not fill Inception-v3: give torch-fidelity's weights-inception file"
            ) from error
        super().__init__("inception", hash_of_checkpoint(file), 2048, net, device, "bilinear as TensorFlow 1")

    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(three_channels(images))


def resaved_tensors(file: Path) -> BytesIO:
    """Read the tensors of a .pth or .safetensors file, and save them again for readers that execute pickles.

    Raises:
        UserError: the file holds anything but named tensors.
    """
    state = read_checkpoint(file)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} holds more than named tensors: give a state dict")
    require_finite(state, file)
    copy = BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    return copy


class Dinov2(NetworkExtractor):
    """Maps images to DINOv2's class token, 1024 features for facebook/dinov2-large (Stein et al., arXiv 2306.04675).

    Args:
        directory: holds config.json and the weights.
        size: side that images are resized to, by antialiased bicubic interpolation in float32.
        device: auto, cpu or cuda.
    """

    def __init__(self, directory: Path | str, size: int = 224, device: str = "auto") -> None:
        net = load_transformers("Dinov2Model", directory, "facebook/dinov2-large")
        self.size = size
        super().__init__(
            "dinov2", hash_of_directory(directory), net.config.hidden_size, net, device, f"bicubic to {size}"
        )

    def run(self, images: Tensor) -> tuple[Tensor, None]:
        return self.net(resized(images, self.size, IMAGENET)).last_hidden_state[:, 0], None


class Clip(NetworkExtractor):
    """Maps images to CLIP's projected embeddings at unit length, 768 for openai/clip-vit-large-patch14-336.

    Args:
        directory: holds config.json and the weights.
        device: auto, cpu or cuda.
    """

    def __init__(self, directory: Path | str, device: str = "auto") -> None:
        net = load_transformers("CLIPVisionModelWithProjection", directory, "openai/clip-vit-large-patch14-336")
        self.size = net.config.image_size
        resize = f"bicubic to {self.size}"
        super().__init__("clip", hash_of_directory(directory), net.config.projection_dim, net, device, resize)

    def run(self, images: Tensor) -> tuple[Tensor, None]:
        return normalize(self.net(resized(images, self.size, OPENAI)).image_embeds), None


def resized(images: Tensor, size: int, mean_std: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """Resize uint8 images to float32 (n, 3, size, size), normalised."""
    pixels = three_channels(images).float() / 255
    pixels = interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(s, device=images.device).view(3, 1, 1) for s in mean_std)
    return (pixels - mean) / std
