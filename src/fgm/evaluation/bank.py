"""Features kept: one pass through the extractor, and every distance after that is arithmetic."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from fgm.evaluation.features import FeatureExtractor
from fgm.evaluation.frechet import FeatureStatistics
from fgm.utils.random import keyed_generator


@dataclass(frozen=True)
class FeatureBank:
    """features (n, d) and, where the extractor has some, logits (n, classes); float32, on the CPU."""

    features: Tensor
    logits: Tensor | None = None

    @classmethod
    def of(cls, extractor: FeatureExtractor, images: Tensor, batch: int | None = None) -> Self:
        """From uint8 images (n, c, h, w), batch at once or all."""
        passes = [extractor.both(part) for part in images.split(batch or len(images))]
        logits = [part for _, part in passes if part is not None]
        return cls(torch.cat([part for part, _ in passes]), torch.cat(logits) if logits else None)

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def statistics(self) -> FeatureStatistics:
        return FeatureStatistics.of(self.features)

    def some(self, n: int) -> Tensor:
        """n feature vectors, drawn without replacement where there are more; the same ones at every call."""
        if n >= len(self):
            return self.features
        return self.features[torch.randperm(len(self), generator=keyed_generator("bank", 0, index=0))[:n]]
