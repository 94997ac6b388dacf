"""Ranks of a training as torchrun or SLURM would start them, in forked processes: torch is imported once."""

import fcntl
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def torchrun(rank: int, world: int, port: int, nodes: int = 1) -> dict[str, str]:
    """The environment of a worker that torchrun starts."""
    each = world // nodes
    return {
        "RANK": f"{rank}", "WORLD_SIZE": f"{world}", "LOCAL_RANK": f"{rank % each}", "LOCAL_WORLD_SIZE": f"{each}",
        "GROUP_RANK": f"{rank // each}", "TORCHELASTIC_RUN_ID": "none",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}",
    }  # fmt: skip


def srun(rank: int, world: int, port: int, nodes: int = 1) -> dict[str, str]:
    """The environment of a task that srun starts."""
    each = world // nodes
    return {
        "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0", "SLURM_NTASKS": f"{world}",
        "SLURM_NTASKS_PER_NODE": f"{each}", "SLURM_NNODES": f"{nodes}", "SLURM_PROCID": f"{rank}",
        "SLURM_LOCALID": f"{rank % each}", "SLURM_NODEID": f"{rank // each}", "SLURM_NODELIST": "127.0.0.1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}",
    }  # fmt: skip


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other worker of pytest runs ranks: two trainings of two ranks would starve each other."""
    with Path(__file__).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


@alone()
def on_ranks(work: Callable[..., Any], *arguments: Any, world: int = 2, nodes: int = 1, start: Any = torchrun) -> None:
    """Runs work(*arguments) on each rank, and waits for all.

    Raises:
        AssertionError: a rank failed; with its traceback.
    """
    port = free_port()
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    ranks = [
        context.Process(target=as_rank, args=(start(rank, world, port, nodes), failures, work, arguments))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    while any(process.is_alive() for process in ranks) and failures.empty():
        for process in ranks:
            process.join(0.05)
    said = failures.get() if not failures.empty() else ""
    for process in ranks:
        if said:
            process.kill()
        process.join()
    assert not said, said
    assert [process.exitcode for process in ranks] == [0] * world


def as_rank(environment: dict[str, str], failures: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= environment
    try:
        work(*arguments)
    except BaseException:
        failures.put(f"rank of {environment}:\n{traceback.format_exc()}")
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
