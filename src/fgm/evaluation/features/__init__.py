"""Feature spaces. From images to the vectors that distances compare.

    small.SmallClassifier             digits and Fashion-MNIST, shipped with this package
    inception.Inception               the only space whose Fréchet distance is called FID; weights by path
    registered.Registered             whatever is registered with torch-fidelity
    transformer.Dinov2, Clip          local directories in transformers' layout
    convolutions.RandomConvolutions   no weights at all, for smoke tests

A value belongs to its space: every extractor has an id and the first eight hex digits of its weights' sha256, and both
stand in the protocol. Networks run in float32 without autocast or TF32, in eval mode, whatever training does around
them. Nothing is ever downloaded.
"""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class FeatureExtractor(Protocol):
    """uint8 images (n, c, h, w) -> float32 features (n, dim), on the CPU.

    Attributes:
        id: what the network is called.
        sha256: of its weights, the first eight hex digits.
        dim: of the features.
        resize: how images come to the network's size, as protocols say it.
        reads_labels: whether its logits are the data's classes.
    """

    id: str
    sha256: str
    dim: int
    resize: str
    reads_labels: bool

    def __call__(self, images: "Tensor") -> "Tensor": ...

    def both(self, images: "Tensor") -> "tuple[Tensor, Tensor | None]":
        """Features, and logits (n, classes) where there are some, from one pass."""
        ...
