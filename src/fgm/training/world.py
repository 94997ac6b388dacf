"""Of how many ranks a run was, kept in its checkpoints.

Noise and the order of data are functions of (seed, rank, cycle), and every rank draws batch_size samples a cycle. On
another number of ranks a run therefore goes on with other numbers, and with another batch, than it would have had; it
does so where that is asked for, and counts its samples on.
"""

from typing import Any, Literal

from lightning.pytorch import Callback, Trainer
from rich.console import Console

from fgm.training.method import Method
from fgm.utils.errors import UserError

WorldChange = Literal["refuse", "accept"]


class World(Callback):
    """
    Args:
        console: for the line that says what changes.
        change: whether a run may go on with another number of ranks.
    """

    def __init__(self, console: Console, change: WorldChange) -> None:
        self.console, self.change = console, change

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Method, checkpoint: dict[str, Any]) -> None:
        checkpoint["world"] = {"ranks": trainer.world_size, "images_seen": pl_module.images_seen}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Method, checkpoint: dict[str, Any]) -> None:
        """
        Raises:
            UserError: there are more ranks than there were, or fewer, and that was not asked for.
        """
        if kept := checkpoint.get("world"):
            pl_module.seen_until = (int(checkpoint["state_dict"]["cycle"]), kept["images_seen"])
            self.compare(pl_module, kept["ranks"], trainer.world_size)

    def compare(self, module: Method, before: int, now: int) -> None:
        if before == now:
            return
        cycle, size = module.seen_until[0], module.schedule.batch_size
        told = (
            f"cycle {cycle} was reached on {ranks(before)}, and {ranks(now)} would go on: with other noise and order "
            f"of data, and a batch of {size * now} in place of {size * before}"
        )
        if self.change == "refuse":
            raise UserError(f"{told}; give world_change=accept, or as many devices as before")
        self.console.print(f"world_change=accept: {told.replace('would go', 'go')}")


def ranks(n: int) -> str:
    return f"{n} rank{'s' * (n > 1)}"
