"""What sample i of a sampler is drawn under, and what a suite is told of it: pure functions of i.

balanced    class i modulo their number, so that classes are balanced however a range is cut
asked       question i of a suite that asks
drawn       a condition of the data's own, from a stream of its own; a suite is told nothing
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fgm.data import Data
from fgm.evaluation import PromptMetric
from fgm.evaluation.sampling import Conditions
from fgm.utils.random import keyed_generator


@dataclass(frozen=True)
class Conditioning:
    """Functions of the indices of samples, (n,).

    Attributes:
        labels: classes or ids of prompts, (n,) int64; or None.
        conditions: what the sampler is given, (n, ...); or None.
    """

    labels: Conditions
    conditions: Conditions


def conditioning(data: Data, suite: Any, seed: int) -> Conditioning:
    """The one that suits data and suite."""
    if isinstance(suite, PromptMetric):
        return asked(suite)
    return balanced(data.num_classes) if data.num_classes else drawn(data, seed)


def balanced(num_classes: int) -> Conditioning:
    """Of no classes: unconditional."""

    def classes(indices: Tensor) -> Tensor | None:
        return indices % num_classes if num_classes else None

    return Conditioning(classes, classes)


def asked(suite: PromptMetric) -> Conditioning:
    return Conditioning(suite.prompt_ids, lambda indices: suite.conditions(suite.prompt_ids(indices)))


def drawn(data: Data, seed: int) -> Conditioning:
    """Of data without classes; where it has no conditions at all, samples are unconditional."""

    def conditions(indices: Tensor) -> Tensor | None:
        rows = [data.conditions(1, keyed_generator(seed, "condition", index=i)) for i in indices.tolist()]
        found = [row for row in rows if row is not None]
        return torch.cat(found) if found else None

    return Conditioning(lambda indices: None, conditions)
