"""One run of its own process, from the config.yaml in its run directory: python -m fgm.cli.studies.point <file> [tied]

A point that crashes takes nothing else with it, and one that is done leaves no checkpoints behind. `tied` says that
standard input is held open by the process that started this one: when that one is gone, this one saves and stops. While
one process runs a point, others wait for it.
"""

import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fgm.cli.runs import read_yaml
from fgm.cli.train import train
from fgm.utils.errors import entry, rank, resumable


def main(arguments: list[str]) -> None:
    resumable()
    config = read_yaml(Path(arguments[0]))
    if "tied" in arguments:
        threading.Thread(target=stop_with_parent, daemon=True).start()
    with alone(Path(config["run_dir"])):
        train(config)
        if "study" in config:
            shutil.rmtree(Path(config["run_dir"]) / "checkpoints", ignore_errors=True)  # its weights are exported


def stop_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock a thread that waits would hold at the end of the process
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """Of all processes that were started for this run, not counting those that they start for other devices."""
    if rank():
        yield
        return
    with (run_dir / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    entry(main, __doc__)
