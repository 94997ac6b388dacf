"""What the extractors share: a frozen network in eval mode, exact float32, and grey images in three channels."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from fgm.utils.errors import UserError


class NetworkExtractor:
    """A FeatureExtractor around a network; subclasses say in `run` how it is called.

    It is no nn.Module, so that neither train(), nor a checkpoint, nor an average of weights ever reaches its network.
    """

    reads_labels = False

    def __init__(
        self, id: str, sha256: str, dim: int, net: nn.Module, device: str = "auto", resize: str = "none"
    ) -> None:
        self.id, self.sha256, self.dim, self.resize = id, sha256, dim, resize
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.net = net.requires_grad_(False).to(self.device)

    def __call__(self, images: Tensor) -> Tensor:
        return self.both(images)[0]

    def both(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise UserError(f"{self.id} reads uint8 images (n, c, h, w), not {images.dtype} {tuple(images.shape)}")
        self.net.eval()
        with torch.no_grad(), exact(self.device.type):
            features, logits = self.run(images.to(self.device))
        return features.float().cpu(), None if logits is None else logits.float().cpu()

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


@contextmanager
def exact(device_type: str) -> Iterator[None]:
    """float32 as it is written: no autocast, no TF32."""
    backends: Any = torch.backends
    kinds = (backends.cuda.matmul, backends.cudnn.conv)
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def three_channels(images: Tensor) -> Tensor:
    """Grey images (n, 1, h, w) repeated to (n, 3, h, w); others as they are."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def weights_hash(net: nn.Module) -> str:
    """The first eight hex digits of the sha256 over names and bytes of a network's tensors."""
    digest = sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]
