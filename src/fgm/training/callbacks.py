"""Callbacks that log a step, compile, and check what would otherwise go wrong without a word.

MetricLogger              hands a step's scalars to the loggers
ConsoleLogger             one plain line per log entry, for pipes and files
CompileBlocks             torch.compile of every network's blocks
UnusedParameterCheck      warns of trainable tensors that do not move
ReplicaConsistencyCheck   stops a run whose ranks hold different weights
WorldSizeCheck            refuses to resume on another number of ranks
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fgm.training.distributed import local, training_ranks
from fgm.training.module import TrainingModule
from fgm.training.optim import parameters_of
from fgm.utils.errors import UserError

HIDDEN = ("images_seen", "skipped")  # scalars that a console line leaves out
CHECKED_STEPS, NAMED = 10, 3
COMPILED_VARIANTS = 64  # of one block: which gradients are needed, batch sizes, kinds of blocks
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per number


class MetricLogger(Callback):
    """Hand a step's scalars to the loggers before a checkpoint of that step is written.

    Lightning's own order is the other way round: a run killed between the two would resume without that row. Values of
    EvaluationCallback, which logs them itself, are left out: they stay in callback_metrics until the next evaluation.
    """

    def setup(self, trainer: Trainer, pl_module: TrainingModule, stage: str) -> None:
        pl_module.logged_by_callback = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, *_: Any) -> None:
        if pl_module.logs_now:
            scalars = {k: float(v) for k, v in trainer.callback_metrics.items() if not k.startswith("eval/")}
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=int(pl_module.step) - 1)
                logger.save()


class ConsoleLogger(Callback):
    """Print one plain line per log entry; a terminal gets a progress bar instead."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        self.started, self.images = time.perf_counter(), pl_module.images_seen

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, *_: Any) -> None:
        if pl_module.logs_now:
            speed = (pl_module.images_seen - self.images) / (time.perf_counter() - self.started)
            scalars = {k: float(v) for k, v in trainer.callback_metrics.items() if k not in HIDDEN and "/" not in k}
            text = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
            self.console.print(
                f"step {int(pl_module.step)}/{trainer.num_training_batches}  {text}  {speed:.0f} images/s"
            )


class CompileBlocks(Callback):
    """Compile the members of each network's outermost module lists in place.

    State dicts keep their names, so checkpoints are exchangeable with uncompiled runs. Blocks of equal shapes share one
    compilation; gradient checkpointing stays outside of a block. The first steps are slow: each block is compiled with
    weight gradients, with input gradients only, and without gradients.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        if getattr(pl_module, "gan", None):
            raise UserError(
                "training.compile = true: the discriminator reads features by hooks on blocks; leave one out"
            )
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VARIANTS)
        for net in pl_module.networks():
            blocks = blocks_to_compile(net)
            if not blocks:
                raise UserError(f"training.compile = true: {type(net).__name__} has no blocks to compile; leave it out")
            for block in blocks:
                block.compile(dynamic=False)


def blocks_to_compile(net: nn.Module) -> list[nn.Module]:
    """Return the members of the outermost module lists, unequal ones such as a U-Net's levels too."""
    blocks: list[nn.Module] = []
    for child in net.children():
        blocks += list(child) if isinstance(child, nn.ModuleList) else blocks_to_compile(child)
    return blocks


class UnusedParameterCheck(Callback):
    """Warn of trainable tensors that do not move.

    A layer before one that starts at zero rests at first; so a network that has not moved at all is named after its first
    update, single tensors after CHECKED_STEPS. A resumed run is not checked: the last steps of a schedule are tiny.
    Weights are compared by the sum of their bits.

    Attributes:
        resting: the tensors of each network that have not moved yet, and their sums, by name.
        sizes: how many trainable tensors each network has.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.resting: dict[str, dict[str, int]] = {}
        self.sizes: dict[str, int] = {}

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        if int(pl_module.step):
            return
        names, optimized = {p: name for name, p in pl_module.named_parameters()}, set()
        for network, optimizer in zip(pl_module.updated, trainer.optimizers, strict=False):
            mine = [p for p in parameters_of(optimizer) if p in names]
            self.resting[network] = dict(zip((names[p] for p in mine), bit_sums(mine), strict=True))
            self.sizes[network] = len(list(parameters_of(optimizer)))
            optimized |= set(mine)
        forgotten = [name for p, name in names.items() if p.requires_grad and p not in optimized]
        if forgotten:
            self.warn(0, f"no optimizer moves {shorten(forgotten)}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, *_: Any) -> None:
        parameters: dict[str, Tensor] = dict(pl_module.named_parameters()) if self.resting else {}
        for network in list(self.resting):
            updates = pl_module.taken.get(network, 0)
            if updates:
                self.compare(network, parameters, updates, int(pl_module.step))

    def compare(self, network: str, parameters: dict[str, Tensor], updates: int, step: int) -> None:
        """Look at the tensors that have not moved yet; ranks agree, since each may hold only a shard."""
        before, total = self.resting[network], self.sizes[network]
        now = dict(zip(before, bit_sums(parameters[name] for name in before), strict=True))
        moved = set().union(*training_ranks().all_gather([name for name in before if now[name] != before[name]]))
        resting = self.resting[network] = {name: value for name, value in before.items() if name not in moved}
        done = len(resting) in (0, total) or updates >= CHECKED_STEPS
        if done and resting:
            tensors = f"{len(resting)} of {total} trainable tensors of the {network}"
            taken = f"{updates} update{'s' * (updates > 1)}"
            self.warn(step, f"{tensors} have not moved in {taken}: {shorten(list(resting))}")
        if done:
            del self.resting[network]

    def warn(self, step: int, what: str) -> None:
        self.console.print(f"warning at step {step}: {what}")


@torch.no_grad()
def bit_sums(tensors: Iterable[Tensor]) -> list[int]:
    """Return the sum of each tensor's bits, of the shard on this rank."""
    shards = [local(tensor).detach() for tensor in tensors]
    sums = [x.contiguous().view(BITS[x.element_size()]).sum(dtype=torch.int64) for x in shards]
    return torch.stack(sums).tolist() if sums else []


def shorten(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


class ReplicaConsistencyCheck(Callback):
    """Compare the ranks' weights after the first steps.

    Raises:
        RuntimeError: they differ, which DDP itself would not notice.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, *_: Any) -> None:
        if trainer.world_size == 1 or trainer.global_step > CHECKED_STEPS:
            return
        sums = training_ranks().all_gather(
            checksum(x for x in pl_module.state_dict().values() if not isinstance(x, DTensor))
        )
        if len(set(sums)) > 1:
            raise RuntimeError(f"step {int(pl_module.step)}: the ranks' weights differ; checksums {sums}")


@torch.no_grad()
def checksum(tensors: Iterable[Tensor]) -> int:
    """Return the sum of all bytes, each tensor's weighted by its number."""
    total = 0
    for i, tensor in enumerate(tensors, 1):
        total += i * int(tensor.detach().contiguous().flatten().view(torch.uint8).long().sum())
    return total


class WorldSizeCheck(Callback):
    """Keep the number of ranks in checkpoints, and refuse to resume on another one unless that is allowed.

    Noise and data order are functions of (seed, rank, step), and each rank draws batch_size samples a step: on another
    number of ranks the run continues with other noise and another global batch.
    """

    def __init__(self, console: Console, allow_change: bool) -> None:
        self.console, self.allow_change = console, allow_change

    def on_save_checkpoint(self, trainer: Trainer, pl_module: TrainingModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["world"] = {"ranks": trainer.world_size, "images_seen": pl_module.images_seen}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: TrainingModule, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("world")
        if saved is None:
            return
        step, before, now = int(checkpoint["state_dict"]["step"]), saved["ranks"], trainer.world_size
        pl_module.images_before = (step, saved["images_seen"])
        if before == now:
            return
        size = pl_module.config.batch_size
        change = (
            f"step {step} was reached on {before} rank{'s' * (before > 1)}; on {now} the run continues with other noise and "
            f"data order, and a batch of {size * now} instead of {size * before}"
        )
        if not self.allow_change:
            raise UserError(f"{change}; give allow_world_size_change=true, or as many devices as before")
        self.console.print(f"allow_world_size_change=true: {change}")
