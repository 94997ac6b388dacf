"""What processes take to end, less what they wait for a processor: that is the machine's, however busy it is."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PATIENCE = 300.0


def waited(pid: int) -> float:
    """Seconds in which the process was ready and did not run (Linux's schedstat); 0 where that is not told."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def seconds_until(over: Callable[[], bool], pids: Sequence[int]) -> float:
    """From now, for these processes and the one that waits for them.

    Raises:
        AssertionError: it takes PATIENCE by the clock on the wall.
    """
    pids, began = [*pids, os.getpid()], time.monotonic()
    first = {pid: waited(pid) for pid in pids}
    last = dict(first)
    while not over():
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.02)
        last = {pid: max(last[pid], waited(pid)) for pid in pids}
    return time.monotonic() - began - sum(last[pid] - first[pid] for pid in pids)
