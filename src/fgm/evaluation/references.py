"""What samples are compared with: real images, or the moments that somebody made of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fgm.data.pixels import Mode, dequantise, quantise
from fgm.evaluation.bank import FeatureBank
from fgm.evaluation.diagnostics import radial_power
from fgm.evaluation.features import FeatureExtractor
from fgm.evaluation.moments import Gaussian, load_moments
from fgm.utils.files import sha256_of
from fgm.utils.random import keyed_generator

FRESH = 10_000  # draws that stand for a training set that has no end


@dataclass(frozen=True)
class Reference:
    """name as protocols say it, moments, and where they are known the features and pixel powers of the images."""

    name: str
    moments: Gaussian
    bank: FeatureBank | None = None
    powers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def features(self) -> Tensor:
        assert self.bank is not None  # the suite refuses what a file of moments cannot serve
        return self.bank.features


def reference_of_file(path: str, dim: int) -> Reference:
    """Moments in EDM's layout."""
    moments = load_moments(path, dim)
    return Reference(f"{Path(path).name} {sha256_of(Path(path))[:8]}", moments)


def reference_of_data(
    data: Any, extractor: FeatureExtractor, mode: Mode, batch: int | None, power: bool = False
) -> Reference:
    """The training split, or fresh draws where there is none; with the powers of its pixels where asked."""
    pixels = quantise(real_images(data, "train")[0], mode)
    bank, powers = FeatureBank.of(extractor, pixels, batch), radial_power(dequantise(pixels)) if power else {}
    return Reference("training split" if has_split(data) else f"{len(bank)} draws", bank.statistics, bank, powers)


def real_images(data: Any, part: str) -> tuple[Tensor, Tensor | None]:
    """Images and labels of the train or the test part."""
    if has_split(data):
        return data.split[part]
    return data.draw(FRESH, keyed_generator("reference", part, index=0))


def has_split(data: Any) -> bool:
    return getattr(data, "split", None) is not None


def has_held_out(data: Any) -> bool:
    """Whether there are images beside those of the reference."""
    return not has_split(data) or "test" in data.split
