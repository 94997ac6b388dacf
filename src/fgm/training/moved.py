"""Whether what is to be trained moves at all: a network whose optimizer has other weights, adapters without gradients,
steps that are too small for a weight's dtype.

A tensor may rest at first, as a layer does before one that starts at zero; so a network that has not moved at all is
named after its first update, and single tensors after CHECKED of them. Weights are compared by the sum of their bits.
"""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from torch import Tensor

from fgm.training.descend import Descent
from fgm.training.method import Method
from fgm.training.optimizers import parameters_of
from fgm.training.ranks import training_ranks
from fgm.training.sharding import local

CHECKED, SHOWN = 10, 3
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


class Moved(Callback):
    """Warns of trainable tensors that do not move; of a run that begins, since the last steps of one are small.

    Args:
        console: where the warnings go.

    Attributes:
        resting: the tensors of each network that have not moved yet, and their sums, by their names.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.resting: dict[str, dict[str, int]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Method) -> None:
        if int(pl_module.cycle):
            return
        named, chosen = {p: name for name, p in pl_module.named_parameters()}, set()
        for descent in pl_module.descents:
            mine = [p for p in parameters_of(trainer.optimizers[descent.index]) if p in named]
            self.resting[descent.name] = dict(zip((named[p] for p in mine), sums(mine), strict=True))
            chosen |= set(mine)
        forgotten = [name for p, name in named.items() if p.requires_grad and p not in chosen]
        if forgotten:
            self.warn(0, f"no optimizer moves {few(forgotten)}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Method, *_: Any) -> None:
        parameters: dict[str, Tensor] = dict(pl_module.named_parameters()) if self.resting else {}
        for descent in pl_module.descents:
            if descent.taken and descent.name in self.resting:
                total = len(list(parameters_of(trainer.optimizers[descent.index])))
                self.look(descent, parameters, total, int(pl_module.cycle))

    def look(self, descent: Descent, parameters: dict[str, Tensor], total: int, cycle: int) -> None:
        """At those that rested so far; the same on all ranks, of which each may hold a part of a tensor."""
        before = self.resting[descent.name]
        now = dict(zip(before, sums(parameters[name] for name in before), strict=True))
        moved = set().union(*training_ranks().all_gather([name for name in before if now[name] != before[name]]))
        rest = self.resting[descent.name] = {name: value for name, value in before.items() if name not in moved}
        done = len(rest) in (0, total) or descent.taken >= CHECKED
        if done and rest:
            many = f"{len(rest)} of {total} trainable tensors of the {descent.name}"
            updates = f"{descent.taken} update{'s' * (descent.taken > 1)}"
            self.warn(cycle, f"{many} have not moved in {updates}: {few(list(rest))}")
        if done:
            del self.resting[descent.name]

    def warn(self, cycle: int, what: str) -> None:
        self.console.print(f"warning at cycle {cycle}: {what}")


@torch.no_grad()
def sums(tensors: Iterable[Tensor]) -> list[int]:
    """Of each one's bits, of what this rank holds of it."""
    held = [local(tensor).detach() for tensor in tensors]
    found = [one.contiguous().view(BITS[one.element_size()]).sum(dtype=torch.int64) for one in held]
    return torch.stack(found).tolist() if found else []


def few(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
