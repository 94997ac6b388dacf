"""A cycle's batch in m parts, the graph of one of them in memory at a time; the gradient is the whole batch's.

Every loss is a mean over samples, L = sum_i (n_i/n) L_i over parts of n_i samples, and so is its gradient:

    online and     sum_i (n_i/n) dL_i/dw: m backwards, one step
    discriminator
    generator      1    x_0 = g(z) without a graph
                   2    d_i = (n_i/n) dL_i/d(x_t, c) through teacher, online network and discriminator, a part at a time
                   3    dL/dx_0 from <x_t, d> + <c, d'>, whose graph is that of the path alone
                   4    g(z_i) again, with its graph: m backwards of <g(z_i), dL/dx_0,i>, one step

One more call of the generator pays for it; in return its graph is never there together with another network's. All
that is drawn is drawn for the whole batch, so that m changes memory, and no number but by rounding.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Told = dict[str, Tensor]
InTurn = tuple[Tensor, *tuple[Callable[[], Tensor], ...]]
Work = Callable[..., tuple[Tensor, Told]]  # tensors of some samples -> mean over them, means to log


def slices(n: int, parts: int) -> list[slice]:
    """Of n samples, as even as can be."""
    return [slice(a, b) for a, b in pairwise(n * i // parts for i in range(parts + 1))]


def cut(where: slice, *tensors: Tensor | None) -> tuple[Any, ...]:
    """Those samples of each."""
    return tuple(tensor if tensor is None else tensor[where] for tensor in tensors)


class Summed:
    """The parts of a mean, as losses to be descended one after another.

    Args:
        work: see Work.
        parts: m.
        tensors: of the whole batch.

    Attributes:
        told: means over the batch, once all parts are done.
    """

    def __init__(self, work: Work, parts: int, *tensors: Tensor | None) -> None:
        n = next(len(tensor) for tensor in tensors if tensor is not None)
        self.work, self.tensors, self.told, self.n = work, tensors, {}, n
        self.slices = slices(n, parts)

    def part(self, where: slice) -> Tensor:
        """Its share of the mean."""
        share, (loss, told) = (where.stop - where.start) / self.n, self.work(*cut(where, *self.tensors))
        self.told = added(self.told, told, share)
        return share * loss

    def losses(self) -> InTurn:
        return in_turn(self.part, self.slices)


def in_turn(part: Callable[[slice], Tensor], parts: Sequence[slice]) -> InTurn:
    """The first part's loss, and what gives each other one when its turn comes."""
    first, *others = parts
    return part(first), *(partial(part, where) for where in others)


def rooted(work: Work, parts: int, through: Sequence[Tensor], *beside: Tensor | None) -> tuple[Tensor, Told]:
    """A scalar whose backward gives `through` the gradient of the mean of work(*through, *beside), and what it told."""
    if parts == 1:
        return work(*through, *beside)
    summed = Summed(work, parts, *(x.detach().requires_grad_() for x in through), *beside)
    leaves: Any = summed.tensors[: len(through)]
    for where in summed.slices:
        summed.part(where).backward(inputs=leaves)
    products = [(x * y.grad).sum() for x, y in zip(through, leaves, strict=True) if y.grad is not None]
    return torch.stack(products).sum(), summed.told


def added(sums: Told, part: Told, share: float) -> Told:
    return {name: sums.get(name, 0) + share * value.detach() for name, value in part.items()}
