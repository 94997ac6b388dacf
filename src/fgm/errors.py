"""One way to say no: a clear line and exit code 2, before anything is written."""

import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NoReturn

EIGHT_BIT = "bitsandbytes>=0.49,<1"  # what pip is asked for
RESUMABLE = 75  # EX_TEMPFAIL of sysexits: the same command again goes on
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Refusal(Exception):
    """Bad input; the message says what, where, and what to do."""


def require_installed(package: str, option: str, requirement: str) -> None:
    """
    Raises:
        Refusal: an option needs a package that is not installed.
    """
    if find_spec(package) is None:
        raise Refusal(f"{option} needs {package}, which is not installed: pip install '{requirement}'")


def entry(main: Callable[[list[str]], None], usage: str | None) -> None:
    """Run a command on the arguments of the process; a Refusal is one line on stderr and exit code 2.

    Of the ranks that torchrun starts, the first one says it: what one rank finds alone, comm.together brings there.
    """
    try:
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(usage)
        else:
            main(sys.argv[1:])
    except Refusal as refusal:
        if rank() == 0:
            print(f"error: {refusal}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command again goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def resumable() -> None:
    """From now on a signal to stop ends the process with RESUMABLE, since all that it has done is on the disk."""
    for number in SIGNALS:
        signal.signal(number, leave)


def leave(number: int, frame: Any) -> NoReturn:
    del frame
    print(f"{signal.Signals(number).name}: stopped; the same command again goes on", file=sys.stderr)
    sys.exit(RESUMABLE)


def rank() -> int:
    """Of this process, as torchrun, SLURM's srun or Lightning's launcher tell it."""
    within_srun = "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    names = ("RANK", *(("SLURM_PROCID",) if within_srun else ()), "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0"))
