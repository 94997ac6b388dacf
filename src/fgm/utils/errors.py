"""Bad input is one clear line on stderr and exit code 2, before anything is written."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, NoReturn

RESUMABLE = 75  # EX_TEMPFAIL of sysexits: the same command again resumes
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
DISK_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space"),
    errno.EROFS: "make it writable, or give another place",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give access to it, or another place"),
}


class UserError(Exception):
    """Bad input; the message says what is wrong, where, and what to do."""


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def last_line(error: BaseException) -> str:
    """Return the line of load_state_dict's message that names the weights, or the error's type if it has no message."""
    return str(error).strip().rpartition("\n")[2].strip() or type(error).__name__


def hint(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return "did you mean <the known name whose last dotted part is nearest>?", or else otherwise or all names."""
    parts = {each: each.rpartition(".")[2] for each in known}
    near = get_close_matches(name.rpartition(".")[2], parts.values(), 1, 0.5)
    if not near:
        return otherwise or f"there are {', '.join(parts) or 'none'}"
    alike = [each for each, part in parts.items() if part == near[0]]
    return f"did you mean {get_close_matches(name, alike, 1, 0)[0]}?"


def require_installed(package: str, option: str, extra: str) -> None:
    """
    Raises:
        UserError: option needs a package, of that extra of pyproject.toml, and it is not installed.
    """
    try:
        found = find_spec(package)
    except ModuleNotFoundError:  # the package that it is a part of is missing
        found = None
    if found is None:
        raise UserError(f"{option} needs {package}, which is not installed: pip install -e '.[{extra}]'")


def entry(main: Callable[[list[str]], None], usage: str | None) -> None:
    """Run a command on the process's arguments; a UserError or a full or read-only disk is one line and exit code 2.

    Ranks above 0 print "error on rank <n>: ...".
    """
    try:
        if usage and {"-h", "--help"} & set(sys.argv[1:]):
            print(usage)
        else:
            main(sys.argv[1:])
    except UserError as error:
        print(f"error{f' on rank {rank()}' if rank() else ''}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command again resumes from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = unwritable(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


def unwritable(error: BaseException) -> str | None:
    """Return a line on the disk that is full or read-only if that is the error's cause, else None.

    torch.save hides the OSError in the context, and safetensors in the message.
    """
    number = re.search(r"\(os error (\d+)\)", str(error))
    hidden = [OSError(int(number[1]), os.strerror(int(number[1])))] if number else []
    for cause in (error, error.__context__, *hidden):
        if isinstance(cause, OSError) and cause.errno in DISK_REMEDIES:
            where = f"{cause.filename}: " if cause.filename else ""
            return f"{where}{cause.strerror}: {DISK_REMEDIES[cause.errno]}"
    return None


def resumable() -> None:
    """Let SIGNALS end the process with exit code RESUMABLE from now on, since everything is on disk."""

    def stop(number: int, frame: Any) -> NoReturn:
        del frame
        print(f"{signal.Signals(number).name}: stopped; the same command again resumes", file=sys.stderr)
        sys.exit(RESUMABLE)

    for number in SIGNALS:
        signal.signal(number, stop)


def rank() -> int:
    """Return this process's rank as set by torchrun, SLURM's srun or Lightning's launcher."""
    within_srun = "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    names = ("RANK", *(("SLURM_PROCID",) if within_srun else ()), "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0"))
