"""Cached prompts as a panel: what their pictures look like, and the colour drift that a long distillation brings.

    pixel_mean, pixel_std    of the images in [-1, 1]; where they leave the teacher's, colours have drifted
    saturation               mean of (max - min)/max over the channels of [0, 1]; guidance and time drive it up
    clipped                  share of values outside [-1, 1], which a PNG cuts off

These are signs of failure, not of quality: whether the pictures show their prompts is for GenEval to say.
"""

from typing import Any

import torch
from torch import Tensor

from fgm.evaluation import Rows
from fgm.records import Measurement
from fgm.text.index import PromptCache


class PromptPanel:
    """Images (n, 3, height, width); sample i is asked for prompt i, beginning anew behind the last one.

    Args:
        cache: of the encoded prompts.
    """

    def __init__(self, cache: PromptCache) -> None:
        self.index = cache.require()

    def identity(self) -> dict[str, Any]:
        return {"prompts": self.index.digest}

    def conditions(self, indices: Tensor) -> Tensor:
        """Prompts (n,), never the empty one."""
        return 1 + indices % (len(self.index.prompts) - 1)

    def captions(self, indices: Tensor) -> list[str]:
        return [self.index.prompts[i] for i in self.conditions(indices).tolist()]

    def rows(self, x_0: Tensor, labels: Tensor | None) -> Rows:
        del labels
        x_0 = x_0.float() / 127.5 - 1 if x_0.dtype == torch.uint8 else x_0
        most, least = ((x_0.clamp(-1, 1) + 1) / 2).aminmax(dim=1)[::-1]
        return {
            "pixel_mean": x_0.flatten(1).mean(1), "pixel_std": x_0.flatten(1).std(1),
            "saturation": ((most - least) / most.clamp_min(1e-6)).flatten(1).mean(1),
            "clipped": (x_0.abs() > 1).float().flatten(1).mean(1),
        }  # fmt: skip

    def judge(self, rows: Rows) -> list[Measurement]:
        protocol = f"mean over images; prompts {self.index.digest[:8]}"
        return [Measurement(name, values.mean().item(), len(values), protocol) for name, values in rows.items()]

    def measure(self, x_0: Tensor, labels: Tensor | None) -> list[Measurement]:
        return self.judge(self.rows(x_0, labels))

    def bounds(self) -> list[Measurement]:
        """None: there are no real images."""
        return []
