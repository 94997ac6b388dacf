"""A generator's or a teacher's samples: a pure function of (seed, index, condition).

Images are quantised to uint8. A sampler is always called on the same batches, whose borders are multiples of `batch`:
arithmetic may differ in its last bits between batch sizes, and does not between ranges that start at such a border.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from fgm.data import Data
from fgm.errors import Refusal
from fgm.evaluation.quantise import Mode, quantise
from fgm.evaluation.sampling import Source, decoded, draw, labels_of
from fgm.evaluation.sources import Samples
from fgm.streams import stream

Condition = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class SamplerSource:
    """n samples of a sampler.

    Args:
        source: the sampler.
        seed: of its noise.
        shape: of one sample.
        condition: from indices to conditions, (n, ...).
        labelled: whether the conditions are class labels, to be told to a panel.
        batch: samples at once.
        identity: what else defines the samples: the weights' hash and the like.
        mode: how images become bytes.
    """

    source: Source
    seed: int
    n: int
    shape: tuple[int, ...]
    condition: Condition
    device: torch.device
    batch: int = 1000
    labelled: bool = True
    identity: dict[str, Any] = field(default_factory=dict)
    mode: Mode = "round"

    @classmethod
    def of(
        cls, source: Source, data: Data, seed: int, n: int, device: torch.device, batch: int, **identity: Any
    ) -> Self:
        """Of data's shape, class by class; where conditions are no classes, sample i has its own of the seed."""

        def condition(indices: Tensor) -> Tensor | None:
            return conditions_of(data, seed, indices)

        labelled = bool(data.num_classes)
        return cls(decoded(source, data), seed, n, data.shape, condition, device, batch, labelled, identity)

    @property
    def nfe(self) -> int:
        return self.source.nfe

    @property
    def weights(self) -> str:
        return self.source.weights

    def take(self, indices: range) -> Samples:
        whole = torch.arange(indices.start, indices.stop)
        conditions = self.condition(whole)
        parts = zip(whole.split(self.batch), self.parts(conditions, len(whole)), strict=True)
        x = torch.cat([draw(self.source, self.seed, i, self.shape, c, self.device) for i, c in parts])
        require_finite(x, indices.start, self.source.name)
        labels = conditions if self.labelled else None
        return Samples(quantise(x, self.mode) if len(self.shape) == 3 else x, labels)

    def parts(self, conditions: Tensor | None, n: int) -> list[Tensor] | list[None]:
        return [None] * -(-n // self.batch) if conditions is None else list(conditions.split(self.batch))

    def describe(self) -> dict[str, Any]:
        drawn = {"name": self.source.name, "nfe": self.nfe, "weights": self.weights, "seed": self.seed}
        where = {"batch": self.batch, "device": self.device.type, "shape": list(self.shape), "quantise": self.mode}
        return {"kind": "sampler", **drawn, **where, **self.identity}


def conditions_of(data: Data, seed: int, indices: Tensor) -> Tensor | None:
    """Labels in turn, or each index's own draw, (n, ...); None where data has neither."""
    if data.num_classes:
        return labels_of(indices, data.num_classes)
    rows: list[Tensor] = []
    for i in indices.tolist():
        condition = data.conditions(1, stream(seed, "condition", index=i))
        if condition is None:
            return None
        rows.append(condition)
    return torch.cat(rows)


def require_finite(x: Tensor, start: int, name: str) -> None:
    """Refuse NaN and infinity, which quantising would turn into pixels."""
    broken = (~x.flatten(1).isfinite().all(1)).nonzero().flatten()
    if len(broken):
        raise Refusal(
            f"{name}: {len(broken)} of the samples {start} to {start + len(x) - 1} are not finite, number "
            f"{start + int(broken[0])} first; the weights have diverged: train again, with a lower learning rate"
        )
