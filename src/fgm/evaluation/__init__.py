"""Measurements. A panel measures one set of samples; a value never travels without its protocol and its n."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from fgm.records import Measurement


class Panel(Protocol):
    """A fixed set of metrics against one reference."""

    def measure(self, x_0: Tensor, labels: Tensor | None) -> list[Measurement]:
        """Samples (n, *shape) and the labels that they were conditioned on."""
        ...

    def bounds(self) -> list[Measurement]:
        """The same metrics on fresh real samples (floor) and on bad ones (ceiling)."""
        ...


@runtime_checkable
class Asking(Panel, Protocol):
    """A panel that says what every sample is asked to show; sample i gets condition i, however many are drawn."""

    def conditions(self, indices: Tensor) -> Tensor:
        """What a sampler is given for samples (n,): (n, ...)."""
        ...

    def captions(self, indices: Tensor) -> list[str]:
        """The same in words."""
        ...

    def truth(self, indices: Tensor) -> Tensor:
        """Real samples (n, *shape) that show it."""
        ...

    def verdicts(self, x_0: Tensor) -> list[tuple[bool, str]]:
        """Whether samples 0 to n - 1 show it, and if not, why."""
        ...
