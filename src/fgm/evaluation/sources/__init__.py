"""Where samples come from: a sampler, a folder of PNGs, a data set; all by index, all as uint8.

Sample i of a source is always the same, whoever asks for it and in whatever range. What a folder holds and what memory
held before it was written there are therefore the same bit for bit: a sampler's images are quantised to uint8, as a PNG
does, before anything measures them. Points, which have no PNG, stay float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Some samples of a source, as a suite takes them.

    Attributes:
        x: images uint8 (n, c, h, w), or points float32 (n, d).
        labels: (n,) int64, where there are any.
    """

    x: Tensor
    labels: Tensor | None = None


class SampleSource(Protocol):
    """n samples, by index; nfe and weights are a Measurement's."""

    @property
    def n(self) -> int: ...

    @property
    def nfe(self) -> int: ...

    @property
    def weights(self) -> str: ...

    def take(self, indices: range) -> Samples:
        """Samples number indices.start to indices.stop - 1."""
        ...

    def describe(self) -> dict[str, Any]:
        """All that defines the samples, as plain containers: two sources that say the same hold the same."""
        ...


def in_steps(source: SampleSource, step: int) -> Iterator[tuple[range, Samples]]:
    """All samples of a source and their indices, at most `step` at once."""
    for start in range(0, source.n, step):
        indices = range(start, min(start + step, source.n))
        yield indices, source.take(indices)
