"""Measurements. A panel measures one set of samples; a value never travels without its protocol and its n."""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from fgm.utils.records import Measurement

if TYPE_CHECKING:  # GenEval's files are read and refused without waiting for torch
    from torch import Tensor

Rows = dict[str, "Tensor"]


class Panel(Protocol):
    """A fixed set of metrics against one reference, in two steps, so that samples may come in shards:

    rows(x_0, labels)    what is kept of each sample, tensors whose first axis counts samples; x_0 (n, *shape) is
                         float32, images in [-1, 1], or uint8; labels (n,) int64 or None are what each one answers:
                         a class, or the number of one of the panel's questions
    judge(rows)          the metrics, from the rows of all samples in their order

    identity() tells all that defines the rows, such as the extractor's hash, as plain containers.
    """

    def identity(self) -> dict[str, Any]: ...

    def rows(self, x_0: "Tensor", labels: "Tensor | None") -> Rows: ...

    def judge(self, rows: Rows) -> list[Measurement]: ...

    def bounds(self) -> list[Measurement]:
        """The same metrics on fresh real samples (floor) and on bad ones (ceiling)."""
        ...


@runtime_checkable
class Asking(Protocol):
    """A panel that says what every sample is asked to show, by the numbers of its questions."""

    def questions(self, indices: "Tensor") -> "Tensor":
        """Of samples (n,): (n,) int64, however many are drawn."""
        ...

    def conditions(self, questions: "Tensor") -> "Tensor":
        """What a sampler is given for them: (n, ...)."""
        ...

    def prompts(self, questions: "Tensor") -> list[str]:
        """The same in words, as people read them."""
        ...

    def truth(self, questions: "Tensor") -> "Tensor | None":
        """Real samples (n, *shape) that answer them, where there are some."""
        ...

    def verdicts(self, x_0: "Tensor", questions: "Tensor") -> list[tuple[bool, str]]:
        """Whether each sample answers its question, and if not, why; empty where the panel does not judge."""
        ...


def measure(panel: Panel, x_0: "Tensor", labels: "Tensor | None" = None) -> list[Measurement]:
    """Of samples (n, *shape) in memory."""
    return panel.judge(panel.rows(x_0, labels))
