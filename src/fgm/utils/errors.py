"""One way to say no: a clear line and exit code 2, before anything is written."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, NoReturn

RESUMABLE = 75  # EX_TEMPFAIL of sysexits: the same command again goes on
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
UNWRITABLE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space"),
    errno.EROFS: "make it writable, or give another place",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give access to it, or another place"),
}


class UserError(Exception):
    """Bad input; the message says what, where, and what to do."""


def first_line(error: BaseException) -> str:
    """Of another library's message; empty where it has none."""
    return str(error).strip().partition("\n")[0]


def last_line(error: BaseException) -> str:
    """Of load_state_dict's message, whose first one only names the module; the error's type where it has none."""
    return str(error).strip().rpartition("\n")[2].strip() or type(error).__name__


def hint(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """What to do about an unknown name: the nearest known one, or all of them, or what to say in their place.

    Of dotted names the last part tells which is nearest, wherever it stands, also by initials: learning_rate is lr.
    """
    last = name.rpartition(".")[2]
    parts = {each: each.rpartition(".")[2] for each in known}
    initials = "".join(word[:1] for word in last.split("_"))
    if "_" in last and last not in parts.values() and initials in parts.values():
        last = initials
    near = get_close_matches(last, parts.values(), 1, 0.5)
    if not near:
        return otherwise or f"there are {', '.join(parts) or 'none'}"
    alike = [each for each, part in parts.items() if part == near[0]]
    return f"did you mean {get_close_matches(name, alike, 1, 0)[0]}?"


def require_installed(package: str, option: str, extra: str) -> None:
    """
    Args:
        extra: of pyproject.toml, which holds the package.

    Raises:
        UserError: an option needs a package that is not installed.
    """
    try:
        found = find_spec(package)
    except ModuleNotFoundError:  # not even the package that it is a part of
        found = None
    if found is None:
        raise UserError(f"{option} needs {package}, which is not installed: pip install -e '.[{extra}]'")


def entry(main: Callable[[list[str]], None], usage: str | None) -> None:
    """Run a command on the arguments of the process; a UserError is one line on stderr and exit code 2.

    So is a disk that is full or may not be written. A rank above the first says its own so: "error on rank 3: ...".
    Where the others wait for it, as in a measurement, on_all_ranks brings it to the first one instead.
    """
    try:
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(usage)
        else:
            main(sys.argv[1:])
    except UserError as refusal:
        print(f"error{f' on rank {rank()}' if rank() else ''}: {refusal}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command again goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        found = unwritable(error)
        if found is None:
            raise
        print(f"error: {told(found)}", file=sys.stderr)
        sys.exit(2)


def unwritable(error: BaseException) -> OSError | None:
    """The OSError behind an error, where it means that a disk is full or may not be written.

    torch.save hides it in the context, and safetensors in its text.
    """
    number = re.search(r"\(os error (\d+)\)", str(error))
    hidden = [OSError(int(number[1]), os.strerror(int(number[1])))] if number else []
    for known in (error, error.__context__, *hidden):
        if isinstance(known, OSError) and known.errno in UNWRITABLE:
            return known
    return None


def told(found: OSError) -> str:
    """One line of what unwritable found."""
    where = f"{found.filename}: " if found.filename else ""
    return f"{where}{found.strerror}: {UNWRITABLE[found.errno or 0]}"


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
