"""The suite for images: one pass through an extractor, then any of fgm.evaluation.metrics.

Reference: the training split, as CIFAR-10's protocols have it. Floor: held-out images, or fresh draws. Ceilings:
noise clipped to [-1, 1], and held-out images blurred by a 3 x 3 box.
"""

import logging
from dataclasses import asdict, replace
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fgm.data.pixels import Mode, dequantise, quantise
from fgm.evaluation import Features
from fgm.evaluation.bank import FeatureBank
from fgm.evaluation.bias import bias_table, is_small
from fgm.evaluation.diagnostics import BANDS, radial_power
from fgm.evaluation.features import FeatureExtractor
from fgm.evaluation.metrics import KS, Comparison
from fgm.evaluation.protocols import Name, protocol_of
from fgm.evaluation.references import Reference, has_held_out, real_images, reference_of_data, reference_of_file
from fgm.evaluation.requirements import fewest_samples, known_metrics, large_enough
from fgm.utils.errors import UserError
from fgm.utils.random import sample_noise
from fgm.utils.records import Measurement
from fgm.utils.validation import validated

DISTANCES = ("fd", "kid", *KS)


@validated
class FeatureMetrics:
    """Samples against one reference in one feature space.

    Args:
        extractor: from images to features.
        data: with a split {train, test} of images and labels, or with draw(n, generator).
        reference: path of moments in EDM's layout, in place of data's training split.
        metrics: in the order in which they are reported.
        protocol: see fgm.evaluation.protocols.
        kid_subsets, kid_subset_size: of kid; a subset is no larger than the smaller set.
        batch: images through the extractor at once; None for all.
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
        self.extractor, self.data, self.batch = extractor, data, batch
        self.metrics = known_metrics(metrics, extractor, moments_alone=reference is not None)
        self.protocol = protocol_of(protocol, extractor)
        self.kid_subsets, self.kid_subset_size = kid_subsets, kid_subset_size
        self.warned: set[int] = set()
        if reference is not None:
            self.reference = large_enough(reference_of_file(reference, extractor.dim), self.metrics)

    @cached_property
    def reference(self) -> Reference:
        found = reference_of_data(self.data, self.extractor, self.mode, self.batch, "power" in self.metrics)
        return large_enough(found, self.metrics)

    def identity(self) -> dict[str, Any]:
        space = {"id": self.extractor.id, "sha256": self.extractor.sha256, "resize": self.extractor.resize}
        kept = {"batch": self.batch, "power": "power" in self.metrics}
        return {"protocol": asdict(self.protocol), "extractor": space} | kept

    @property
    def mode(self) -> Mode:
        """How samples become bytes."""
        return self.protocol.quantise

    def features(self, x_0: Tensor, labels: Tensor | None) -> Features:
        if not x_0.isfinite().all():
            raise UserError(f"{len(x_0)} samples hold values that are not finite: the generator has diverged")
        pixels = quantise(x_0, self.mode)
        bank = FeatureBank.of(self.extractor, pixels, self.batch)
        beside = {"logits": bank.logits, "labels": labels}
        powers = radial_power(dequantise(pixels)) if "power" in self.metrics else {}
        return {"features": bank.features} | {name: row for name, row in beside.items() if row is not None} | powers

    def compute(self, features: Features) -> list[Measurement]:
        self.require(len(features["features"]))
        self.warn(len(features["features"]))
        return self.compare(features, self.metrics)

    def compare(self, features: Features, metrics: tuple[str, ...]) -> list[Measurement]:
        comparison = Comparison(
            FeatureBank(features["features"], features.get("logits")), self.reference, features.get("labels"),
            {name: features[name] for name in BANDS if name in features}, self.protocol, self.extractor,
            self.kid_subsets, self.kid_subset_size,
        )  # fmt: skip
        return [measurement for metric in metrics for measurement in comparison.measure(metric)]

    def reference_values(self) -> list[Measurement]:
        """Floor and ceilings, by the metrics that the held-out part is large enough for; none without such a part."""
        if self.data is None or not has_held_out(self.data):
            return []
        real, labels = real_images(self.data, "test")
        real = dequantise(real)
        metrics = tuple(m for m in self.metrics if len(real) >= fewest_samples(m, self.extractor.dim))
        noise = sample_noise(0, range(len(real)), tuple(real.shape[1:]), role="ceiling").clamp(-1, 1)
        floor, blurred = f"floor: held-out {self.noun}", f"ceiling: blurred {self.noun}"
        sets = {floor: real, "ceiling: noise": noise, blurred: blur(real)}
        return [
            replace(m, protocol=f"{name}; {m.protocol}")
            for name, x in sets.items()
            for m in self.compare(self.features(x, labels), metrics)
        ]

    def require(self, n: int) -> None:
        """Refuse an n that a metric cannot be computed from; the reference is not touched."""
        for metric in self.metrics:
            needed = fewest_samples(metric, self.extractor.dim)
            if n < needed:
                raise UserError(
                    f"{metric} in the {self.extractor.dim} features of {self.extractor.id} needs {needed} samples or "
                    f"more, not {n}: raise evaluation.n and evaluation.n_in_training, or take kid"
                )

    def warn(self, n: int) -> None:
        """Say once for each n how far an fd of so few samples is off."""
        if "fd" not in self.metrics or n in self.warned or not is_small(n, self.extractor.dim):
            return
        self.warned.add(n)
        logging.getLogger(__name__).warning(
            "fd of %d samples in %d features: a perfect generator would show about %s; compare at equal n alone, or "
            "read kid", n, self.extractor.dim, bias_table(self.reference.moments.covariance, n),
        )  # fmt: skip


def blur(x: Tensor) -> Tensor:
    """Mean over 3 x 3 pixels."""
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
