"""Measurements: samplers -> features -> metrics -> measurements. A value always has a protocol and an n.

sampling            samplers and other sources of samples
features            extractors; pretrained_features those with published weights
frechet, distances  pure functions of features or points; metrics offers them as torchmetrics
feature_metrics, point_metrics, prompt_metrics, geneval, shape_eval        metric suites
evaluator           how many samples, from which seed, over how many processes
"""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from fgm.utils.records import Measurement

Features = dict[str, Tensor]


class MetricSuite(Protocol):
    """A fixed set of metrics against one reference, in two steps, so that samples may come in chunks.

    A suite may also have `mode`, the mode of quantise() for its samples (round unless stated), `num_classes`, which all
    labels have to be below (0 for any), and `require_samples(n)`, which raises a UserError if n samples are too few.
    """

    def identity(self) -> dict[str, Any]:
        """Return what defines the features, such as the extractor's hash, as plain containers."""
        ...

    def features(self, x_0: Tensor, labels: Tensor | None) -> Features:
        """Return what the metrics need of each sample, tensors whose first axis counts samples.

        Args:
            x_0: (n, *shape), float32 (images in [-1, 1]) or uint8.
            labels: (n,) int64, what each sample was conditioned on: a class, or the id of one of the suite's prompts.
        """
        ...

    def compute(self, features: Features) -> list[Measurement]:
        """Return the metrics from the features of all samples in their order."""
        ...

    def reference_values(self) -> list[Measurement]:
        """Return the same metrics of fresh real samples (floor) and of bad ones (ceiling)."""
        ...


@runtime_checkable
class PromptMetric(Protocol):
    """A suite with prompts of its own, which the samples have to answer."""

    def prompt_ids(self, indices: Tensor) -> Tensor:
        """Return the prompt ids (n,) int64 of samples (n,), however many are drawn."""
        ...

    def conditions(self, prompt_ids: Tensor) -> Tensor:
        """Return the sampler's conditions (n, ...)."""
        ...

    def prompts(self, prompt_ids: Tensor) -> list[str]: ...

    def ground_truth(self, prompt_ids: Tensor) -> Tensor | None:
        """Return real samples (n, *shape) of the prompts, or None if there are none."""
        ...

    def grades(self, x_0: Tensor, prompt_ids: Tensor) -> list[tuple[bool, str]]:
        """Return whether each sample is correct, and if not, why; empty if the suite does not grade samples."""
        ...


def measure(suite: MetricSuite, x_0: Tensor, labels: Tensor | None = None) -> list[Measurement]:
    """Measure samples (n, *shape) that are in memory."""
    return suite.compute(suite.features(x_0, labels))
