"""Named protocols: everything that changes a value except the samples.

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

from dataclasses import dataclass
from typing import Literal

from fgm.data.pixels import Rounding
from fgm.evaluation.features import FeatureExtractor
from fgm.utils.errors import UserError
from fgm.utils.pretrained import INCEPTION_HASH

Name = Literal["edm", "torch-fidelity", "clean-legacy", "dmd2-edm", "own"]


@dataclass(frozen=True)
class Protocol:
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
    "edm": Protocol("edm", n=50_000),
    "torch-fidelity": Protocol("torch-fidelity"),
    "clean-legacy": Protocol("clean-legacy", n=50_000),
    "dmd2-edm": Protocol("dmd2-edm", "floor", n=50_000),
}


def protocol_of(name: str, extractor: FeatureExtractor) -> Protocol:
    """Return the published protocol of that name, or for "own" the extractor's.

    Raises:
        UserError: there is no such protocol.
    """
    if name == "own":
        return Protocol(f"{extractor.id}-{extractor.sha256}", published=False)
    if name not in PUBLISHED:
        raise UserError(f"evaluation.suite.protocol: there is no {name!r}; there are {', '.join(PUBLISHED)} and own")
    return PUBLISHED[name]
