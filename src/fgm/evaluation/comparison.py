"""The metrics of one set of samples against one reference, in one feature space; METRICS is their table.

fd                                        Fréchet distance; called fid where fgm.evaluation.features allows it
fd_infinity                               the same, extrapolated to infinitely many samples
kid, cmmd                                 kernel distances; cmmd is called rbf_mmd on other features than CLIP's
precision, recall, density, coverage      against as many real images as samples
accuracy                                  share of samples that the extractor classifies as their labels
class_tv, diversity, power                signs of failure; fgm.training.diagnostics has their healthy ranges

Mode collapse. Total variation between the histogram p of predicted classes and the prior q:

    class_tv = 1/2 sum_k |p_k - q_k|                 0 equal, 1 disjoint; dropping one of ten classes gives 0.1

n draws of q itself give about sum_k (q_k (1 - q_k) / (2 pi n))^1/2, 0.038 for ten classes and n = 1,000, so that fewer
samples say little; with balanced labels only misclassified samples count. Collapse within a class does not show there,
but in the distance d(x) to the nearest OTHER sample:

    diversity = median d(x) among samples / median d(x) among as many reference points

1 equal, 0 copies, above 1 samples that scatter off the data. Compare it at equal n, because d shrinks with n.

Missing detail. The radial power spectrum, P(f) = mean |FFT x|^2 over images, channels and frequencies of a band of
f = (f_x^2 + f_y^2)^1/2 in cycles a pixel (BANDS, octaves up to Nyquist, without the corners beyond 1/2):

    power_low, power_mid, power_high = P(samples) / P(reference)

For a linear blur of transfer function H it is the mean of |H|^2 over the reference's power in the band.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from fgm.data import Data
from fgm.data.pixels import Rounding, dequantise, quantise
from fgm.evaluation.distances import K_DENSITY, K_PRECISION, Prdc, cmmd, kid, normal_interval, prdc, wilson_interval
from fgm.evaluation.features import FeatureExtractor, FeatureSet, MeasurementProtocol
from fgm.evaluation.frechet import Moments, fd_infinity, frechet_distance, frechet_error, min_samples_for_line
from fgm.utils.errors import UserError
from fgm.utils.files import sha256_of
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement

FRESH_DRAWS = 10_000  # in place of the training split of a data set that is unlimited
BANDS = {"power_low": (1 / 16, 1 / 8), "power_mid": (1 / 8, 1 / 4), "power_high": (1 / 4, 1 / 2)}  # (above, up to]
MAX_POINTS = 2000  # of either set, the first ones, whose distances are taken: the cost is quadratic


def total_variation(p: Tensor, q: Tensor) -> float:
    """Return 1/2 sum |p - q| of two histograms (k,), each normalised; 1 if p is empty."""
    p, q = p.double(), q.double()
    return (p / p.sum() - q / q.sum()).abs().sum().item() / 2 if p.sum() > 0 else 1.0


def diversity(x: Tensor, reference: Tensor) -> tuple[float, int]:
    """Return the ratio of medians for (n, d) and (m, d), and the number of points that both are cut to."""
    n = min(len(x), len(reference), MAX_POINTS)
    spread, expected = (nearest_distance(points[:n].flatten(1)).median().item() for points in (x, reference))
    return spread / max(expected, 1e-12), n


def nearest_distance(x: Tensor) -> Tensor:
    """Return the distance from each of x (n, d) to the nearest other one, (n,)."""
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(float("inf")).amin(1)


def radial_power(images: Tensor) -> dict[str, Tensor]:
    """Return the mean power of each image (n, c, h, w) in every band that exists at its size, (n,) each."""
    h, w = images.shape[-2:]
    power = torch.fft.fft2(images.double()).abs().square().mean(1) / (h * w)
    f = torch.hypot(*torch.meshgrid(torch.fft.fftfreq(h), torch.fft.fftfreq(w), indexing="ij"))
    masks = {name: (f > low) & (f <= high + 1e-6) for name, (low, high) in BANDS.items()}
    return {name: power[:, mask].mean(1) for name, mask in masks.items() if mask.any()}


def power_ratios(power: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """Return the ratio of the mean powers of samples and reference, band by band."""
    return {name: (power[name].mean() / reference[name].mean().clamp_min(1e-12)).item() for name in power}


@dataclass(frozen=True)
class Reference:
    """Real images, or moments from a file, which have no features.

    Attributes:
        name: as protocols state it.
        moments: of the features.
        real: the features, where they are known.
        powers: of the pixels in each band, see radial_power.
    """

    name: str
    moments: Moments
    real: FeatureSet | None = None
    powers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def features(self) -> Tensor:
        assert self.real is not None  # require_known refuses metrics that a file of moments cannot serve
        return self.real.features

    @classmethod
    def of_file(cls, path: str, dim: int) -> Self:
        moments = Moments.load(path, dim)
        return cls(f"{Path(path).name} {sha256_of(Path(path))[:8]}", moments)

    @classmethod
    def of_data(cls, data: Data, extractor: FeatureExtractor, mode: Rounding, batch: int | None, power: bool) -> Self:
        """Return the training split of data, or fresh draws, with the powers of the pixels if power is True."""
        pixels = quantise(real_images(data, "train")[0], mode)
        real, powers = FeatureSet.extract(extractor, pixels, batch), radial_power(dequantise(pixels)) if power else {}
        return cls("training split" if data.split else f"{len(real)} draws", real.moments, real, powers)

    def require_moments(self) -> None:
        """Raise a UserError if the covariance is singular."""
        n, dim = self.moments.n, len(self.moments.mean)
        if n is not None and n <= dim:
            raise UserError(
                f"fd against {self.name}: {n} real images cannot fill a covariance of {dim} features; "
                "take a larger reference, or evaluation.suite.metrics=[kid]"
            )


def real_images(data: Data, part: str) -> tuple[Tensor, Tensor | None]:
    """Return images and labels of the train or test split, or fresh draws of an unlimited data set."""
    return data.split[part] if data.split else data.draw(FRESH_DRAWS, keyed_generator("reference", part, index=0))


@dataclass(frozen=True)
class Comparison:
    """One set of samples and its reference.

    Attributes:
        samples, reference: their features.
        labels: that the samples were conditioned on.
        powers: of each sample's pixels in each band; empty unless power is measured.
        protocol, extractor: that the features come from.
        kid_subsets, kid_subset_size: of kid.
    """

    samples: FeatureSet
    reference: Reference
    labels: Tensor | None
    powers: dict[str, Tensor]
    protocol: MeasurementProtocol
    extractor: FeatureExtractor
    kid_subsets: int
    kid_subset_size: int

    @cached_property
    def label(self) -> str:
        return self.protocol.label(self.extractor, len(self.samples))

    @cached_property
    def frechet_name(self) -> str:
        return self.protocol.frechet_name(self.extractor, len(self.samples))

    @cached_property
    def paired(self) -> int:
        """The size that samples and real images are both cut to, because the values depend on either number."""
        return min(len(self.samples), len(self.reference.features))

    @cached_property
    def prdc(self) -> Prdc:
        real = self.reference.real
        assert real is not None
        return prdc(self.samples.subset(self.paired), real.subset(self.paired))

    def measurement(self, metric: str, value: float, *more: str, n: int = 0, **extra: Any) -> Measurement:
        """Return a value that depends on the reference."""
        protocol = ", ".join([self.label, self.reference.name, *more])
        return Measurement(metric, value, n or len(self.samples), protocol, extra=extra)


def measure_fd(c: Comparison) -> list[Measurement]:
    value = frechet_distance(c.samples.moments, c.reference.moments)
    error = frechet_error(c.samples.features, c.reference.moments)
    return [c.measurement(c.frechet_name, value, ci95=normal_interval(value, error))]


def measure_fd_infinity(c: Comparison) -> list[Measurement]:
    line = fd_infinity(c.samples.features, c.reference.moments)
    return [c.measurement(f"{c.frechet_name}_infinity", line.value, ci95=normal_interval(line.value, line.error))]


def measure_kid(c: Comparison) -> list[Measurement]:
    size = min(c.kid_subset_size, len(c.samples), len(c.reference.features))
    k = kid(c.samples.features, c.reference.features, c.kid_subsets, size)
    subsets, interval = f"{c.kid_subsets} subsets of {size}", normal_interval(k.mean, k.error)
    return [c.measurement("kid", k.mean, subsets, ci95=interval, std=k.std)]


def measure_cmmd(c: Comparison) -> list[Measurement]:
    real = c.reference.features
    name = "cmmd" if c.extractor.id == "clip" else "rbf_mmd"
    return [c.measurement(name, cmmd(c.samples.features, real), f"against {len(real)}")]


def measure_prdc(metric: str, k: int, c: Comparison) -> list[Measurement]:
    value, interval = getattr(c.prdc, metric), c.prdc.intervals[metric]
    return [c.measurement(metric, value, f"k = {k}, as many real", n=c.paired, ci95=interval)]


def measure_accuracy(c: Comparison) -> list[Measurement]:
    """Return nothing for samples without labels."""
    if c.labels is None or c.samples.logits is None:
        return []
    value, n = (c.samples.logits.argmax(1) == c.labels).double().mean().item(), len(c.samples)
    return [Measurement("accuracy", value, n, c.label, extra={"ci95": wilson_interval(value, n)})]


def measure_class_tv(c: Comparison) -> list[Measurement]:
    """Compare the predicted classes with the samples' labels, or without labels with the reference's classes."""
    logits, real = c.samples.logits, c.reference.real
    assert logits is not None and real is not None and real.logits is not None
    expected = real.logits.argmax(1) if c.labels is None else c.labels
    counts = (classes.bincount(minlength=logits.shape[1]) for classes in (logits.argmax(1), expected))
    against = c.reference.name if c.labels is None else "labels asked for"
    return [Measurement("class_tv", total_variation(*counts), len(logits), f"{c.label}, against {against}")]


def measure_diversity(c: Comparison) -> list[Measurement]:
    value, n = diversity(c.samples.features, c.reference.features)
    return [c.measurement("diversity", value, "ratio of median distances to the nearest other", n=n)]


def measure_power(c: Comparison) -> list[Measurement]:
    protocol = f"{c.protocol.pixels}, mean radial power over that of the {c.reference.name}"
    ratios = power_ratios(c.powers, c.reference.powers)
    return [Measurement(name, ratio, len(c.samples), protocol) for name, ratio in ratios.items()]


@dataclass(frozen=True)
class Metric:
    """How to measure, and what it takes.

    Attributes:
        measure: from a comparison to one or more measurements.
        min_samples: of a number of features.
        needs_features: whether moments of the reference are not enough.
        needs_labels: whether the extractor must classify the data's classes.
    """

    measure: Callable[[Comparison], list[Measurement]]
    min_samples: Callable[[int], int] = lambda dim: 1
    needs_features: bool = True
    needs_labels: bool = False


NEIGHBOURS = {"precision": K_PRECISION, "recall": K_PRECISION, "density": K_DENSITY, "coverage": K_DENSITY}
METRICS: dict[str, Metric] = {
    "fd": Metric(measure_fd, lambda dim: dim + 1, needs_features=False),
    "fd_infinity": Metric(measure_fd_infinity, min_samples_for_line, needs_features=False),
    "kid": Metric(measure_kid, lambda dim: 2),
    "cmmd": Metric(measure_cmmd),
    **{name: Metric(partial(measure_prdc, name, k), lambda dim: K_DENSITY + 1) for name, k in NEIGHBOURS.items()},
    "accuracy": Metric(measure_accuracy, needs_features=False, needs_labels=True),
    "class_tv": Metric(measure_class_tv, needs_labels=True),
    "diversity": Metric(measure_diversity, lambda dim: 2),
    "power": Metric(measure_power),
}
OF_MOMENTS = ("fd", "fd_infinity")
