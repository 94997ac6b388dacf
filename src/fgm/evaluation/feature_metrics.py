"""The metric suite for images: one pass through a feature extractor, then any metrics of comparison.METRICS.

The reference is the training split, as in CIFAR-10's protocols. Reference values are those of held-out images (floor),
and of noise and of held-out images blurred by a 3 x 3 box (ceilings).
"""

import logging
from dataclasses import asdict, replace
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fgm.data.images import Digits
from fgm.data.pixels import Rounding, dequantise, quantise
from fgm.data.published import FashionMNIST
from fgm.evaluation import Features
from fgm.evaluation.comparison import (
    BANDS,
    METRICS,
    NEIGHBOURS,
    OF_MOMENTS,
    Comparison,
    Reference,
    radial_power,
    real_images,
)
from fgm.evaluation.features import FeatureExtractor, FeatureSet, Name, SmallClassifier, protocol_of
from fgm.evaluation.frechet import bias_warning
from fgm.utils.errors import UserError, hint
from fgm.utils.random import sample_noise
from fgm.utils.records import Measurement
from fgm.utils.validation import validated

DISTANCES = ("fd", "kid", *NEIGHBOURS)
OF_CLASSIFIER = (*DISTANCES, "accuracy", "class_tv", "diversity", "power")


@validated
class FeatureMetrics:
    """Compares samples with one reference in one feature space.

    Args:
        extractor: from images to features.
        data: with a split {train, test} of images and labels, or with draw(n, generator).
        reference: path of moments in EDM's layout, in place of data's training split.
        metrics: keys of comparison.METRICS, in the order in which they are reported.
        protocol: see fgm.evaluation.features.
        kid_subsets, kid_subset_size: of kid; a subset is no larger than the smaller set.
        batch: images through the extractor at once; None for all.

    Raises:
        UserError: extractor or reference cannot serve the metrics.
    """

    noun = "pictures"

    def __init__(
        self,
        extractor: FeatureExtractor,
        data: Any = None,
        reference: str | None = None,
        metrics: tuple[str, ...] = DISTANCES,
        protocol: Name = "own",
        kid_subsets: PositiveInt = 100,
        kid_subset_size: Annotated[int, Field(ge=2)] = 1000,
        batch: PositiveInt | None = 250,
    ) -> None:
        if data is None and reference is None:
            raise UserError("a suite compares with something: give evaluation.suite.data or evaluation.suite.reference")
        self.extractor, self.data, self.batch, self.metrics = extractor, data, batch, tuple(metrics)
        self.protocol = protocol_of(protocol, extractor)
        self.kid_subsets, self.kid_subset_size = kid_subsets, kid_subset_size
        self.warned: set[int] = set()
        self.require_known(only_moments=reference is not None)
        if reference is not None:
            self.reference = self.checked(Reference.of_file(reference, extractor.dim))

    @cached_property
    def reference(self) -> Reference:
        power = "power" in self.metrics
        return self.checked(Reference.of_data(self.data, self.extractor, self.mode, self.batch, power))

    @property
    def mode(self) -> Rounding:
        """How samples are quantised."""
        return self.protocol.quantise

    @property
    def num_classes(self) -> int:
        """The number of classes that labels are compared with; 0 if no metric reads labels."""
        return self.extractor.num_classes if any(METRICS[metric].needs_labels for metric in self.metrics) else 0

    def identity(self) -> dict[str, Any]:
        space = {"id": self.extractor.id, "sha256": self.extractor.sha256, "resize": self.extractor.resize}
        options = {"batch": self.batch, "power": "power" in self.metrics}
        return {"protocol": asdict(self.protocol), "extractor": space} | options

    def features(self, x_0: Tensor, labels: Tensor | None) -> Features:
        if not x_0.isfinite().all():
            raise UserError(f"{len(x_0)} samples hold values that are not finite: the generator has diverged")
        pixels = quantise(x_0, self.mode)
        samples = FeatureSet.extract(self.extractor, pixels, self.batch)
        optional = {"logits": samples.logits, "labels": labels}
        powers = radial_power(dequantise(pixels)) if "power" in self.metrics else {}
        return {"features": samples.features} | {k: v for k, v in optional.items() if v is not None} | powers

    def compute(self, features: Features) -> list[Measurement]:
        n = len(features["features"])
        self.require_samples(n)
        if "fd" in self.metrics and n not in self.warned:
            self.warned.add(n)
            if warning := bias_warning(self.reference.moments.covariance, n):
                logging.getLogger(__name__).warning(warning)
        return self.compare(features, self.metrics)

    def compare(self, features: Features, metrics: tuple[str, ...]) -> list[Measurement]:
        comparison = Comparison(
            FeatureSet(features["features"], features.get("logits")), self.reference, features.get("labels"),
            {name: features[name] for name in BANDS if name in features}, self.protocol, self.extractor,
            self.kid_subsets, self.kid_subset_size,
        )  # fmt: skip
        return [measurement for metric in metrics for measurement in METRICS[metric].measure(comparison)]

    def reference_values(self) -> list[Measurement]:
        """Return floor and ceilings by the metrics that the held-out part is large enough for; none without it."""
        if self.data is None or (self.data.split and "test" not in self.data.split):
            return []
        real, labels = real_images(self.data, "test")
        real = dequantise(real)
        metrics = tuple(m for m in self.metrics if len(real) >= METRICS[m].min_samples(self.extractor.dim))
        noise = sample_noise(0, range(len(real)), tuple(real.shape[1:]), role="ceiling").clamp(-1, 1)
        floor, blurred = f"floor: held-out {self.noun}", f"ceiling: blurred {self.noun}"
        sets = {floor: real, "ceiling: noise": noise, blurred: blur(real)}
        return [
            replace(m, protocol=f"{name}; {m.protocol}")
            for name, x in sets.items()
            for m in self.compare(self.features(x, labels), metrics)
        ]

    def require_samples(self, n: int) -> None:
        """Raise a UserError if n samples are too few for one of the metrics."""
        for metric in self.metrics:
            needed = METRICS[metric].min_samples(self.extractor.dim)
            if n < needed:
                raise UserError(
                    f"{metric} in the {self.extractor.dim} features of {self.extractor.id} needs {needed} samples or "
                    f"more, not {n}: raise evaluation.n and evaluation.n_in_training, or take kid"
                )

    def require_known(self, only_moments: bool) -> None:
        where = "evaluation.suite.metrics"
        for metric in self.metrics:
            if metric not in METRICS:
                raise UserError(f"{where}: there is no metric {metric!r}; {hint(metric, METRICS)}")
            if METRICS[metric].needs_labels and not self.extractor.num_classes:
                raise UserError(f"{where}: {self.extractor.id} does not read the data's labels: leave {metric} out")
            if METRICS[metric].needs_features and only_moments:
                raise UserError(
                    f"{where}: {metric} compares features one by one and evaluation.suite.reference holds only "
                    f"moments: give evaluation.suite.data, or metrics from {', '.join(OF_MOMENTS)}"
                )

    def checked(self, reference: Reference) -> Reference:
        if set(OF_MOMENTS) & set(self.metrics):
            reference.require_moments()
        return reference


def blur(x: Tensor) -> Tensor:
    """Return the mean over 3 x 3 pixels."""
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class DigitMetrics(FeatureMetrics):
    """Distances, accuracy and signs of failure of samples (n, 1, 8, 8)."""

    noun = "scans"

    def __init__(self) -> None:
        super().__init__(SmallClassifier(), Digits(), metrics=OF_CLASSIFIER, kid_subsets=10, batch=None)


class FashionMetrics(FeatureMetrics):
    """Distances, accuracy and signs of failure of samples (n, 1, 28, 28).

    Args:
        data: Fashion-MNIST; None to look for it in its usual places.
    """

    def __init__(self, data: FashionMNIST | None = None) -> None:
        data = data or FashionMNIST()
        super().__init__(SmallClassifier("fashion"), data, metrics=OF_CLASSIFIER, kid_subsets=10, batch=1000)
