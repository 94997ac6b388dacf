"""Real images: a split of a data set in its own order, or draws from an unlimited one, each of its own stream."""

from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from fgm.data import Data
from fgm.data.folders import available
from fgm.data.pixels import quantise
from fgm.evaluation.sources import Samples
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator


class DatasetSource:
    """The first n images of a split, in memory.

    Args:
        images: float (n, c, h, w) in [-1, 1].
        labels: (n,), if there are any.
        name: of data and split, for people.
        n: how many are promised; all if None.
    """

    nfe, weights = 0, "real"

    def __init__(self, images: Tensor, labels: Tensor | None, name: str, n: int | None = None) -> None:
        self.n, self.name = available(n, len(images), name), name
        self.images = quantise(images[: self.n])
        self.labels = None if labels is None else labels[: self.n]

    def take(self, indices: range) -> Samples:
        rows = slice(indices.start, indices.stop)
        return Samples(self.images[rows], None if self.labels is None else self.labels[rows])

    def describe(self) -> dict[str, Any]:
        tensors = [self.images, *([] if self.labels is None else [self.labels])]
        digests = [sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for tensor in tensors]
        return {"kind": "dataset", "name": self.name, "sha256": digests}


def dataset_source(data: Data, name: str, split: str, n: int | None) -> DatasetSource:
    """A split where data has them; else n draws.

    Raises:
        UserError: no such split, no images, or an unlimited set without n.
    """
    if len(data.shape) != 3:
        raise UserError(f"data = {name}: holds points of shape {tuple(data.shape)}, not images")
    splits: dict[str, tuple[Tensor, Tensor]] | None = getattr(data, "split", None)
    if splits is None:
        if n is None:
            raise UserError(f"data = {name} is unlimited: say how many with n=")
        return DatasetSource(torch.cat([drawn(data, i) for i in range(n)]), None, f"{name}, drawn", n)
    if split not in splits:
        raise UserError(f"split = {split}: {name} has {', '.join(splits)}")
    return DatasetSource(*splits[split], f"{name}, {split}", n)


def drawn(data: Data, index: int) -> Tensor:
    """One image, (1, c, h, w)."""
    return data.draw(1, keyed_generator("reference", index=index))[0]
