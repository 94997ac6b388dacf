"""Measurements. A panel measures one set of samples; a value never travels without its protocol and its n."""

from typing import TYPE_CHECKING, Protocol

from fgm.records import Measurement

if TYPE_CHECKING:  # so that a missing file of weights is said before torch is imported
    from torch import Tensor


class Panel(Protocol):
    """A fixed set of metrics against one reference."""

    def measure(self, x_0: "Tensor", labels: "Tensor | None") -> list[Measurement]:
        """Samples (n, *shape) and the labels that they were conditioned on."""
        ...

    def bounds(self) -> list[Measurement]:
        """The same metrics on fresh real samples (floor) and on bad ones (ceiling)."""
        ...
