"""Who evaluates: one process, or several that share a file system.

Ranks exchange files; what goes over the wire is small: a barrier's worth of complaints, and the measurements. A
complaint of any rank ends all of them, so that none waits for one that is gone. A process that ends while its group is
open may abort, since the group's threads are running when the interpreter takes them down; hence the context.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch.distributed

from fgm.utils.errors import UserError, told, unwritable

T = TypeVar("T")
PATIENCE = timedelta(hours=12)  # how long a rank that is done waits for the others


class Comm(Protocol):
    """Rank r of world, as in torch.distributed."""

    rank: int
    world: int

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks on every rank, in rank order; a barrier."""
        ...


class Local:
    """One process."""

    rank, world = 0, 1

    def gather(self, value: Any) -> list[Any]:
        return [value]


class TorchDistributed:
    """A process group of all ranks; the default one, which must be there, if none is given."""

    def __init__(self, group: Any = None) -> None:
        self.rank, self.world, self.group = torch.distributed.get_rank(), torch.distributed.get_world_size(), group

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value, self.group)
        return values


def largest(comm: Comm, value: int) -> int:
    """Of all ranks' values, on every rank; a barrier."""
    if isinstance(comm, TorchDistributed):
        most = torch.tensor(value)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, comm.group)
        return int(most)
    return max(comm.gather(value))


@contextmanager
def comm_of_environment() -> Iterator[Comm]:
    """Of a process that torchrun started, or Local; gloo, since no tensor is exchanged.

    A group that is opened here is closed here, whether the work ends well, with a UserError or by sys.exit.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Local()
    elif torch.distributed.is_initialized():
        yield TorchDistributed()
    else:
        torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        try:
            yield TorchDistributed()
        finally:
            torch.distributed.destroy_process_group()


def together(comm: Comm, work: Callable[[], T]) -> T:
    """Do work on every rank, and wait for all.

    Raises:
        UserError: on rank 0, with the first rank's complaint; the others leave with exit code 2.
    """
    value, complaint = attempt(work)
    complaints = [said for said in comm.gather(complaint) if said]
    if complaints and comm.rank:
        sys.exit(2)
    if complaints:
        raise UserError(complaints[0])
    return value  # type: ignore[return-value]


def on_first(comm: Comm, work: Callable[[], T]) -> T:
    """Do work on rank 0 alone; its value on every rank."""
    value, complaint = attempt(work) if comm.rank == 0 else (None, None)
    together(comm, lambda: refuse(complaint))
    return comm.gather(value)[0]


def attempt(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """The value of work, or its complaint."""
    try:
        return work(), None
    except (UserError, ValueError) as error:
        return None, str(error) or repr(error)
    except Exception as error:
        found = unwritable(error)
        if found is None:
            raise
        return None, told(found)


def refuse(complaint: str | None) -> None:
    if complaint:
        raise UserError(complaint)
