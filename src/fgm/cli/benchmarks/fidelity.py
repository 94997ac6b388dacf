"""torch-fidelity's calculate_metrics on pictures in memory, with one of our extractors.

The reference's features are kept in its cache, as ours keeps them in the suite; the samples' are not.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from fgm.evaluation.features import FeatureExtractor
from fgm.evaluation.features.extractor import three_channels

NAME = "fgm-bench"


class Pictures(Dataset[Tensor]):
    """uint8 (n, 3, h, w), one by one."""

    def __init__(self, images: Tensor) -> None:
        self.images = three_channels(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def calculation(
    extractor: FeatureExtractor, images: Tensor, real: Tensor, batch: int, cache: Path, **metrics: Any
) -> Callable[[], dict[str, float]]:
    """calculate_metrics of images against real, both uint8 (n, c, h, w), as a function without arguments.

    Args:
        batch: pictures through the extractor at once.
        cache: folder of the reference's features.
        metrics: fid, kid, kid_subsets, kid_subset_size.
    """
    from torch_fidelity import calculate_metrics  # seconds to import

    register(extractor, grey=images.shape[1] == 1)
    samples, reference = Pictures(images), Pictures(real)
    on = {"cuda": False, "save_cpu_ram": True, "verbose": False, "batch_size": batch}  # the extractor has its device
    kept = {"cache": True, "cache_root": str(cache), "input2_cache_name": "real"}
    return lambda: calculate_metrics(input1=samples, input2=reference, feature_extractor=NAME, **on, **kept, **metrics)


def register(extractor: FeatureExtractor, grey: bool) -> None:
    """Under NAME; grey pictures come to it as they were before torch-fidelity asked for three channels."""
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Ours(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)

        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (extractor(images[:, :1] if grey else images),)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

    FEATURE_EXTRACTORS_REGISTRY.pop(NAME, None)
    register_feature_extractor(NAME, Ours)
