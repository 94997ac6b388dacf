"""What sample i of a sampler is drawn under, and what a panel is told of it: pure functions of i.

balanced    class i modulo their number, so that classes are balanced however a range is cut
asked       question i of a panel that asks
drawn       a condition of the data's own, from a stream of its own; a panel is told nothing
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fgm.data import Data
from fgm.evaluation import Asking
from fgm.evaluation.sampling import Conditions
from fgm.utils.random import keyed_generator


@dataclass(frozen=True)
class Conditioning:
    """Functions of the indices of samples, (n,).

    Attributes:
        labels: classes or numbers of questions, (n,) int64; or None.
        conditions: what the sampler is given, (n, ...); or None.
    """

    labels: Conditions
    conditions: Conditions


def conditioning(data: Data, panel: Any, seed: int) -> Conditioning:
    """The one that suits data and panel."""
    if isinstance(panel, Asking):
        return asked(panel)
    return balanced(data.num_classes) if data.num_classes else drawn(data, seed)


def balanced(num_classes: int) -> Conditioning:
    """Of no classes: unconditional."""

    def classes(indices: Tensor) -> Tensor | None:
        return indices % num_classes if num_classes else None

    return Conditioning(classes, classes)


def asked(panel: Asking) -> Conditioning:
    return Conditioning(panel.questions, lambda indices: panel.conditions(panel.questions(indices)))


def drawn(data: Data, seed: int) -> Conditioning:
    """Of data without classes; where it has no conditions at all, samples are unconditional."""

    def conditions(indices: Tensor) -> Tensor | None:
        rows = [data.conditions(1, keyed_generator(seed, "condition", index=i)) for i in indices.tolist()]
        found = [row for row in rows if row is not None]
        return torch.cat(found) if found else None

    return Conditioning(lambda indices: None, conditions)
