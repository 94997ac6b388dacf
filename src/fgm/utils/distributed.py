"""The processes of one job: rank, world size, and the few objects that they exchange.

An error on any rank ends all ranks, so that none waits for a process that is gone. Objects travel over gloo; no tensor of
a network does. A process that ends while its group is open may abort, because the group's threads still run when the
interpreter takes them down: `ranks_of_environment` closes the group that it opens.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch.distributed

from fgm.utils.errors import UserError, unwritable

T = TypeVar("T")
SIZES = ("WORLD_SIZE", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "JSM_NAMESPACE_SIZE")  # of torchrun, SLURM, LSF
PLACES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_LOCALID", "JSM_NAMESPACE_RANK")
TIMEOUT = timedelta(hours=12)  # a rank that is done waits for the others


class Ranks(Protocol):
    """Process `rank` of `world_size`, as in torch.distributed."""

    rank: int
    world_size: int

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in rank order, on every rank; a barrier."""
        ...

    def gather(self, value: Any) -> list[Any] | None:
        """Return the values of all ranks, in rank order, on rank 0 and None elsewhere."""
        ...


class SingleProcess:
    """The ranks of a job of one process."""

    rank, world_size = 0, 1

    def all_gather(self, value: Any) -> list[Any]:
        return [value]

    def gather(self, value: Any) -> list[Any]:
        return [value]


class ProcessGroup:
    """The ranks of an initialized process group, the default one if None."""

    def __init__(self, group: Any = None) -> None:
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.group = group

    def all_gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value, self.group)
        return values

    def gather(self, value: Any) -> list[Any] | None:
        values: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        torch.distributed.gather_object(value, values, dst=0, group=self.group)
        return values


def all_reduce_max(ranks: Ranks, value: int) -> int:
    """Return the largest of all ranks' values, on every rank; a barrier."""
    if isinstance(ranks, ProcessGroup):
        largest = torch.tensor(value)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, ranks.group)
        return int(largest)
    return max(ranks.all_gather(value))


def leave_job() -> str | None:
    """Forget what a launcher's or scheduler's variables say of ranks, for a run of one process.

    Returns:
        a line on what they said, if it was of several processes.
    """
    several = [f"{name}={os.environ[name]}" for name in SIZES if os.environ.get(name, "1") not in ("", "1")]
    for name in (*SIZES, *PLACES):
        os.environ.pop(name, None)
    if not several:
        return None
    return (
        f"{', '.join(several)}: this run uses one device and one process; strategy=ddp trainer.devices=<n> uses several"
    )


@contextmanager
def ranks_of_environment() -> Iterator[Ranks]:
    """The ranks of a process that torchrun started, or a single process.

    A group that is opened here is closed here, whether the work ends well, with a UserError or by sys.exit.
    """
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        yield SingleProcess()
    elif torch.distributed.is_initialized():
        yield ProcessGroup()
    elif missing:
        raise UserError(
            f"WORLD_SIZE = {os.environ['WORLD_SIZE']} is set, and {', '.join(missing)} is not: start all processes by "
            "torchrun, or unset WORLD_SIZE"
        )
    else:
        torch.distributed.init_process_group("gloo", timeout=TIMEOUT)
        try:
            yield ProcessGroup()
        finally:
            torch.distributed.destroy_process_group()


def on_all_ranks(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do work on every rank, and wait for all.

    Raises:
        UserError: on rank 0, with the first rank's error message; the other ranks exit with code 2.
    """
    value, message = attempt(work)
    messages = [text for text in ranks.all_gather(message) if text]
    if messages and ranks.rank:
        sys.exit(2)
    if messages:
        raise UserError(messages[0])
    return value  # type: ignore[return-value]


def on_rank_zero(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do work on rank 0 only, and return its value on every rank; raises as on_all_ranks does."""
    value, message = attempt(work) if ranks.rank == 0 else (None, None)
    on_all_ranks(ranks, lambda: raise_if(message))
    return ranks.all_gather(value)[0]


def attempt(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return the value of work and None, or None and the message of an error that the user can correct."""
    try:
        return work(), None
    except (UserError, ValueError) as error:
        return None, str(error) or repr(error)
    except Exception as error:
        cause = unwritable(error)
        if cause is None:
            raise
        return None, cause


def raise_if(message: str | None) -> None:
    if message:
        raise UserError(message)
