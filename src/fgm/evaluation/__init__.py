"""Measurements. A panel measures one set of samples; a value never travels without its protocol and its n."""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from fgm.records import Measurement

if TYPE_CHECKING:  # GenEval's files are read and refused without waiting for torch
    from torch import Tensor

Rows = dict[str, "Tensor"]


class Panel(Protocol):
    """A fixed set of metrics against one reference, in two steps, so that samples may come in shards:

    rows(x_0, labels)    what is kept of each sample, tensors whose first axis counts samples; x_0 (n, *shape) is
                         float32, images in [-1, 1], or uint8
    judge(rows)          the metrics, from the rows of all samples in their order

    identity() tells what else than its config defines the rows: the extractor's hash and the like, as plain containers.
    """

    def identity(self) -> dict[str, Any]: ...

    def rows(self, x_0: "Tensor", labels: "Tensor | None") -> Rows: ...

    def judge(self, rows: Rows) -> list[Measurement]: ...

    def measure(self, x_0: "Tensor", labels: "Tensor | None") -> list[Measurement]:
        """judge after rows: samples (n, *shape) and the labels that they were conditioned on."""
        ...

    def bounds(self) -> list[Measurement]:
        """The same metrics on fresh real samples (floor) and on bad ones (ceiling)."""
        ...


@runtime_checkable
class Asking(Protocol):
    """A panel that says what every sample is asked to show; sample i gets condition i, however many are drawn."""

    def conditions(self, indices: "Tensor") -> "Tensor":
        """What a sampler is given for samples (n,): (n, ...)."""
        ...

    def captions(self, indices: "Tensor") -> list[str]:
        """The same in words."""
        ...


@runtime_checkable
class Judging(Asking, Protocol):
    """An asking panel that knows the answers."""

    def truth(self, indices: "Tensor") -> "Tensor":
        """Real samples (n, *shape) that show it."""
        ...

    def verdicts(self, x_0: "Tensor") -> list[tuple[bool, str]]:
        """Whether samples 0 to n - 1 show it, and if not, why."""
        ...
