"""What samples are compared with: real pictures, or the moments that somebody made of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fgm.evaluation.bank import FeatureBank
from fgm.evaluation.features import FeatureExtractor
from fgm.evaluation.features.weights import sha256_of
from fgm.evaluation.moments import Gaussian, load_moments
from fgm.evaluation.quantise import Mode, quantise
from fgm.streams import stream

FRESH = 10_000  # draws that stand for a training set that has no end


@dataclass(frozen=True)
class Reference:
    """name as protocols say it, moments, and the features behind them where they are known."""

    name: str
    moments: Gaussian
    bank: FeatureBank | None = None

    @property
    def features(self) -> Tensor:
        assert self.bank is not None  # the panel refuses what a file of moments cannot serve
        return self.bank.features


def reference_of_file(path: str, dim: int) -> Reference:
    """Moments in EDM's layout."""
    moments = load_moments(path, dim)
    return Reference(f"{Path(path).name} {sha256_of(Path(path))[:8]}", moments)


def reference_of_data(data: Any, extractor: FeatureExtractor, mode: Mode, batch: int | None) -> Reference:
    """The training split, or fresh draws where there is none."""
    bank = FeatureBank.of(extractor, quantise(pictures(data, "train")[0], mode), batch)
    return Reference("training split" if has_split(data) else f"{len(bank)} draws", bank.statistics, bank)


def pictures(data: Any, part: str) -> tuple[Tensor, Tensor | None]:
    """Pictures and labels of the train or the test part."""
    if has_split(data):
        return data.split[part]
    return data.draw(FRESH, stream("reference", part, index=0))


def has_split(data: Any) -> bool:
    return hasattr(data, "split")
