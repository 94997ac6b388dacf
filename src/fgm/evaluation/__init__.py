"""Measurements. A suite measures one set of samples; a value never travels without its protocol and its n."""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from fgm.utils.records import Measurement

if TYPE_CHECKING:  # GenEval's files are read and refused without waiting for torch
    from torch import Tensor

Features = dict[str, "Tensor"]


class MetricSuite(Protocol):
    """A fixed set of metrics against one reference, in two steps, so that samples may come in shards:

    features(x_0, labels)    what is kept of each sample, tensors whose first axis counts samples; x_0 (n, *shape) is
                         float32, images in [-1, 1], or uint8; labels (n,) int64 or None are what each one answers:
                         a class, or the number of one of the suite's prompts
    compute(features)          the metrics, from the features of all samples in their order

    identity() tells all that defines the features, such as the extractor's hash, as plain containers.
    """

    def identity(self) -> dict[str, Any]: ...

    def features(self, x_0: "Tensor", labels: "Tensor | None") -> Features: ...

    def compute(self, features: Features) -> list[Measurement]: ...

    def reference_values(self) -> list[Measurement]:
        """The same metrics on fresh real samples (floor) and on bad ones (ceiling)."""
        ...


@runtime_checkable
class PromptMetric(Protocol):
    """A suite that says what every sample is asked to show, by the ids of its prompts."""

    def prompt_ids(self, indices: "Tensor") -> "Tensor":
        """Of samples (n,): (n,) int64, however many are drawn."""
        ...

    def conditions(self, prompt_ids: "Tensor") -> "Tensor":
        """What a sampler is given for them: (n, ...)."""
        ...

    def prompts(self, prompt_ids: "Tensor") -> list[str]:
        """The same in words, as people read them."""
        ...

    def ground_truth(self, prompt_ids: "Tensor") -> "Tensor | None":
        """Real samples (n, *shape) that answer them, where there are some."""
        ...

    def grades(self, x_0: "Tensor", prompt_ids: "Tensor") -> list[tuple[bool, str]]:
        """Whether each sample answers its question, and if not, why; empty where the suite does not judge."""
        ...


def measure(suite: MetricSuite, x_0: "Tensor", labels: "Tensor | None" = None) -> list[Measurement]:
    """Of samples (n, *shape) in memory."""
    return suite.compute(suite.features(x_0, labels))
