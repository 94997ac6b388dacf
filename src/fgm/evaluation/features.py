"""Feature spaces, from images to the vectors that distances compare, and the protocols under which they do.

    SmallClassifier             digits and Fashion-MNIST; its weights come with this package
    RandomConvolutions          no weights, for smoke tests
    pretrained_features         Inception, torch-fidelity's registered extractors, DINOv2, CLIP

A value belongs to its feature space: an extractor has an id and the first eight hex digits of its weights' sha256, and
both are part of the protocol. Networks run in float32 without autocast or TF32, in eval mode. Nothing is downloaded.

A protocol is everything that changes a value except the samples.

    name             quantise  resize         n        source
    edm              round     TensorFlow 1   50,000   EDM's fid.py; of three seeds it reports the minimum
    torch-fidelity   round     TensorFlow 1   free     torch-fidelity on PNGs
    clean-legacy     round     TensorFlow 1   50,000   clean-fid's legacy_tensorflow, as torchcfm calls it
    dmd2-edm         floor     TensorFlow 1   50,000   DMD2's evaluator of CIFAR-10 and ImageNet
    own              round     extractor's    free     <extractor>-<hash>, as small-classifier-843d80fd

All use covariances over N - 1 in float64; the reference is the training split without flips, or a file of moments.
A Fréchet distance is called fid under one of the first four, with Inception's published weights and the protocol's n;
otherwise it is an fd, and its protocol states what is missing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal, Protocol, Self

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from fgm.data.pixels import Rounding, dequantise
from fgm.evaluation.classifier import CLASSIFIERS, Classifier, Dataset, load_classifier
from fgm.evaluation.frechet import Moments
from fgm.utils.errors import UserError
from fgm.utils.pretrained import INCEPTION_HASH
from fgm.utils.random import keyed_generator
from fgm.utils.validation import validated

Name = Literal["edm", "torch-fidelity", "clean-legacy", "dmd2-edm", "own"]


class FeatureExtractor(Protocol):
    """Maps uint8 images (n, c, h, w) to float32 features (n, dim) on the CPU.

    Attributes:
        id: name of the network.
        sha256: first eight hex digits of the hash of its weights.
        dim: number of features.
        resize: how images are brought to the network's size, as protocols state it.
        num_classes: number of the data's classes, which its logits belong to; 0 if they do not.
    """

    id: str
    sha256: str
    dim: int
    resize: str
    num_classes: int

    def __call__(self, images: Tensor) -> Tensor: ...

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features, and logits (n, classes) or None, from one pass."""
        ...


class NetworkExtractor:
    """A FeatureExtractor around a network; subclasses implement `run`.

    It is not an nn.Module, so that train(), checkpoints and averages of weights never reach its network.
    """

    num_classes = 0

    def __init__(
        self, id: str, sha256: str, dim: int, net: nn.Module, device: str = "auto", resize: str = "none"
    ) -> None:
        self.id, self.sha256, self.dim, self.resize = id, sha256, dim, resize
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.net = net.requires_grad_(False).to(self.device)

    def __call__(self, images: Tensor) -> Tensor:
        return self.extract(images)[0]

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise UserError(f"{self.id} reads uint8 images (n, c, h, w), not {images.dtype} {tuple(images.shape)}")
        self.net.eval()
        with torch.no_grad(), full_precision(self.device.type):
            features, logits = self.run(images.to(self.device))
        return features.float().cpu(), None if logits is None else logits.float().cpu()

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Disable autocast and TF32."""
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
    """Repeat grey images (n, 1, h, w) to (n, 3, h, w); return others unchanged."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def weights_hash(net: nn.Module) -> str:
    """Return the first eight hex digits of the sha256 of a network's tensors and their names."""
    digest = sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


class SmallClassifier(NetworkExtractor):
    """Maps grey images of a data set to a small classifier's standardised penultimate layer and its ten logits.

    Args:
        dataset: digits (8 x 8) or fashion (28 x 28).
    """

    net: Classifier
    num_classes = 10

    def __init__(self, dataset: Dataset = "digits") -> None:
        config, (net, digest) = CLASSIFIERS[dataset], load_classifier(dataset)
        self.dataset, self.side = dataset, config.side
        super().__init__(config.id, digest, config.features, net, "cpu")

    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[1:] != (1, self.side, self.side):
            raise UserError(
                f"{self.id} reads {self.dataset} (n, 1, {self.side}, {self.side}), not {tuple(images.shape)}: "
                "take another extractor"
            )
        body = self.net.body(dequantise(images))
        return self.net.standardise(body), self.net.head(body)


@validated
class RandomConvolutions(NetworkExtractor):
    """Maps images of any size to the mean (even features) and deviation (odd ones) of two random convolutions.

    Args:
        dim: number of features.
        seed: of the weights.
        device: auto, cpu or cuda.
    """

    def __init__(self, dim: PositiveInt = 64, seed: NonNegativeInt = 0, device: str = "auto") -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Conv2d(3, dim, 3, padding=1), nn.SiLU(), nn.Conv2d(dim, dim, 3, 2, padding=1))
            for weight in (w for w in net.parameters() if w.ndim == 4):
                nn.init.kaiming_normal_(weight)  # so that features are of order one
        super().__init__("random-convolutions", weights_hash(net), dim, net, device)

    def run(self, images: Tensor) -> tuple[Tensor, None]:
        maps = self.net(dequantise(three_channels(images))).flatten(2)
        features = maps.mean(2)
        features[:, 1::2] = maps[:, 1::2].std(2)
        return features, None


@dataclass(frozen=True)
class FeatureSet:
    """features (n, d) and, where the extractor has any, logits (n, classes); float32, on the CPU."""

    features: Tensor
    logits: Tensor | None = None

    @classmethod
    def extract(cls, extractor: FeatureExtractor, images: Tensor, batch: int | None = None) -> Self:
        """Run uint8 images (n, c, h, w) through the extractor, `batch` at a time or all at once."""
        passes = [extractor.extract(part) for part in images.split(batch or len(images))]
        logits = [part for _, part in passes if part is not None]
        return cls(torch.cat([part for part, _ in passes]), torch.cat(logits) if logits else None)

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def moments(self) -> Moments:
        return Moments.of(self.features)

    def subset(self, n: int) -> Tensor:
        """Return n feature vectors, drawn without replacement if there are more; the same ones at every call."""
        if n >= len(self):
            return self.features
        return self.features[torch.randperm(len(self), generator=keyed_generator("bank", 0, index=0))[:n]]


@dataclass(frozen=True)
class MeasurementProtocol:
    """One protocol.

    Attributes:
        name: part of every measurement's protocol.
        quantise: mode of quantise().
        n: number of samples that the protocol demands; None if it is free.
        published: whether papers report under it.
    """

    name: str
    quantise: Rounding = "round"
    n: int | None = None
    published: bool = True

    def label(self, extractor: FeatureExtractor, n: int) -> str:
        """Return the part of a measurement's protocol that precedes the reference."""
        parts = [self.name if self.complete(n) else f"{self.name} but for n = {self.n}"]
        if self.published:
            parts.append(f"{extractor.id}-{extractor.sha256}")
        elif extractor.resize != "none":
            parts.append(extractor.resize)
        return ", ".join([*parts, self.pixels])

    @property
    def pixels(self) -> str:
        return {"round": "uint8", "floor": "uint8 by floor"}[self.quantise]

    def complete(self, n: int) -> bool:
        return self.n is None or n == self.n

    def frechet_name(self, extractor: FeatureExtractor, n: int) -> str:
        """Return fid or fd."""
        inception = extractor.id == "inception" and extractor.sha256 == INCEPTION_HASH
        return "fid" if self.published and inception and self.complete(n) else "fd"


PUBLISHED = {
    "edm": MeasurementProtocol("edm", n=50_000),
    "torch-fidelity": MeasurementProtocol("torch-fidelity"),
    "clean-legacy": MeasurementProtocol("clean-legacy", n=50_000),
    "dmd2-edm": MeasurementProtocol("dmd2-edm", "floor", n=50_000),
}


def protocol_of(name: str, extractor: FeatureExtractor) -> MeasurementProtocol:
    """Return the published protocol of that name, or for "own" the extractor's.

    Raises:
        UserError: there is no such protocol.
    """
    if name == "own":
        return MeasurementProtocol(f"{extractor.id}-{extractor.sha256}", published=False)
    if name not in PUBLISHED:
        raise UserError(f"evaluation.suite.protocol: there is no {name!r}; there are {', '.join(PUBLISHED)} and own")
    return PUBLISHED[name]
