"""From features to measurements, each with all that its value depends on in its protocol.

fd             Fréchet distance; called fid where fgm.evaluation.protocols allows it
fd_infinity    the same, extrapolated to infinitely many samples
kid            unbiased, mean over subsets
cmmd           Gaussian kernel on CLIP's features (rbf_mmd on others)
precision, recall, density, coverage       over as many real images as samples
accuracy       share of samples that the extractor reads as their labels
class_tv, diversity, power_low, _mid, _high       signs of failure, see fgm.evaluation.diagnostics; power gives all bands
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from fgm.evaluation.bank import FeatureBank
from fgm.evaluation.diagnostics import diversity, power_ratios, total_variation
from fgm.evaluation.features import FeatureExtractor
from fgm.evaluation.frechet import frechet_distance, frechet_error
from fgm.evaluation.infinity import fd_infinity
from fgm.evaluation.intervals import normal_interval, wilson_interval
from fgm.evaluation.kernel import cmmd, kid
from fgm.evaluation.neighbours import K_DENSITY, K_PRECISION, Neighbours, neighbours
from fgm.evaluation.protocols import Protocol
from fgm.evaluation.references import Reference
from fgm.utils.records import Measurement

MOMENTS_SUFFICE = ("fd", "fd_infinity")
KS = {"precision": K_PRECISION, "recall": K_PRECISION, "density": K_DENSITY, "coverage": K_DENSITY}
READING = ("accuracy", "class_tv")  # need an extractor that reads the data's labels
SYMPTOMS = ("class_tv", "diversity", "power")
METRICS = (*MOMENTS_SUFFICE, "kid", "cmmd", *KS, "accuracy", *SYMPTOMS)


@dataclass(frozen=True)
class Comparison:
    """One set of samples against one reference.

    Attributes:
        samples, reference: their features.
        labels: that the samples were conditioned on.
        powers: of each sample in each band, see symptoms.radial_power; empty unless power is asked for.
        protocol, extractor: that gave the features.
        kid_subsets, kid_subset_size: of kid.
    """

    samples: FeatureBank
    reference: Reference
    labels: Tensor | None
    powers: dict[str, Tensor]
    protocol: Protocol
    extractor: FeatureExtractor
    kid_subsets: int
    kid_subset_size: int

    def measure(self, metric: str) -> list[Measurement]:
        """One or more; none where labels are needed and there are none."""
        if metric in KS:
            return [self.near(metric)]
        found = getattr(self, metric)()  # known_metrics() lets nothing else through
        return found if isinstance(found, list) else [found] if found else []

    @cached_property
    def label(self) -> str:
        return self.protocol.label(self.extractor, len(self.samples))

    @cached_property
    def frechet_name(self) -> str:
        return self.protocol.frechet_name(self.extractor, len(self.samples))

    def told(self, metric: str, value: float, *more: str, n: int = 0, **extra: Any) -> Measurement:
        """A value that rests on the reference."""
        protocol = ", ".join([self.label, self.reference.name, *more])
        return Measurement(metric, value, n or len(self.samples), protocol, extra=extra)

    def fd(self) -> Measurement:
        value = frechet_distance(self.samples.statistics, self.reference.moments)
        error = frechet_error(self.samples.features, self.reference.moments)
        return self.told(self.frechet_name, value, ci95=normal_interval(value, error))

    def fd_infinity(self) -> Measurement:
        line = fd_infinity(self.samples.features, self.reference.moments)
        return self.told(f"{self.frechet_name}_infinity", line.value, ci95=normal_interval(line.value, line.error))

    def kid(self) -> Measurement:
        size = min(self.kid_subset_size, len(self.samples), len(self.reference.features))
        found = kid(self.samples.features, self.reference.features, self.kid_subsets, size)
        subsets = f"{self.kid_subsets} subsets of {size}"
        return self.told("kid", found.mean, subsets, ci95=normal_interval(found.mean, found.error), std=found.std)

    def cmmd(self) -> Measurement:
        real = self.reference.features
        name = "cmmd" if self.extractor.id == "clip" else "rbf_mmd"
        return self.told(name, cmmd(self.samples.features, real), f"against {len(real)}")

    def near(self, metric: str) -> Measurement:
        value, interval = getattr(self.neighbours, metric), self.neighbours.intervals[metric]
        return self.told(metric, value, f"k = {KS[metric]}, as many real", n=self.paired, ci95=interval)

    @cached_property
    def paired(self) -> int:
        """As many real images as samples: the values change with either number."""
        return min(len(self.samples), len(self.reference.features))

    @cached_property
    def neighbours(self) -> Neighbours:
        assert self.reference.bank is not None
        return neighbours(self.samples.some(self.paired), self.reference.bank.some(self.paired))

    def accuracy(self) -> Measurement | None:
        if self.labels is None or self.samples.logits is None:
            return None
        correct = (self.samples.logits.argmax(1) == self.labels).double().mean().item()
        n = len(self.samples)
        return Measurement("accuracy", correct, n, self.label, extra={"ci95": wilson_interval(correct, n)})

    def class_tv(self) -> Measurement:
        """Of the classes that the extractor reads, against the labels asked for or else those of the reference."""
        logits, real = self.samples.logits, self.reference.bank
        assert logits is not None and real is not None and real.logits is not None
        wanted = real.logits.argmax(1) if self.labels is None else self.labels
        read, asked = (classes.bincount(minlength=logits.shape[1]) for classes in (logits.argmax(1), wanted))
        against = self.reference.name if self.labels is None else "labels asked for"
        return Measurement("class_tv", total_variation(read, asked), len(logits), f"{self.label}, against {against}")

    def diversity(self) -> Measurement:
        value, n = diversity(self.samples.features, self.reference.features)
        return self.told("diversity", value, "ratio of median distances to the nearest other", n=n)

    def power(self) -> list[Measurement]:
        ratios = power_ratios(self.powers, self.reference.powers)
        protocol = f"{self.protocol.pixels}, mean radial power over that of the {self.reference.name}"
        return [Measurement(name, ratio, len(self.samples), protocol) for name, ratio in ratios.items()]
