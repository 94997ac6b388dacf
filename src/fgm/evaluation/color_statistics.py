"""The colours of images of cached prompts, which drift where a distillation goes wrong; read them beside the teacher's.

pixel_mean, pixel_std    of the pixels in [-1, 1]
saturation               mean of (max - min)/max over the channels in [0, 1]; guidance and long training raise it
clipped                  share of values at either end of the range
"""

from typing import Any

from torch import Tensor

from fgm.data.encodings import PromptCache
from fgm.data.pixels import dequantise, quantise
from fgm.evaluation import Features
from fgm.utils.records import Measurement
from fgm.utils.validation import validated


@validated
class ColorStatistics:
    """A PromptMetric of images (n, 3, height, width) that does not grade them; prompt id i is prompt i + 1 of the cache.

    Args:
        cache: of the encoded prompts.
    """

    def __init__(self, cache: PromptCache) -> None:
        self.index = cache.read_index()

    def identity(self) -> dict[str, Any]:
        return {"prompts": self.index.digest}

    def prompt_ids(self, indices: Tensor) -> Tensor:
        """Return the prompts in their order, from the first one again after the last."""
        return indices % (len(self.index.prompts) - 1)

    def conditions(self, prompt_ids: Tensor) -> Tensor:
        return prompt_ids + 1

    def prompts(self, prompt_ids: Tensor) -> list[str]:
        return [self.index.prompts[i + 1] for i in prompt_ids.tolist()]

    def ground_truth(self, prompt_ids: Tensor) -> None:
        """Return None: there are no real images."""

    def grades(self, x_0: Tensor, prompt_ids: Tensor) -> list[tuple[bool, str]]:
        return []

    def features(self, x_0: Tensor, labels: Tensor | None) -> Features:
        pixels = quantise(x_0)
        x = dequantise(pixels)
        lowest, highest = ((x + 1) / 2).aminmax(dim=1)
        return {
            "pixel_mean": x.flatten(1).mean(1),
            "pixel_std": x.flatten(1).std(1),
            "saturation": ((highest - lowest) / highest.clamp_min(1e-6)).flatten(1).mean(1),
            "clipped": ((pixels == 0) | (pixels == 255)).float().flatten(1).mean(1),
        }

    def compute(self, features: Features) -> list[Measurement]:
        protocol = f"uint8, mean over images; prompts {self.index.digest[:8]}"
        return [Measurement(name, values.mean().item(), len(values), protocol) for name, values in features.items()]

    def reference_values(self) -> list[Measurement]:
        return []
