"""A command as a process: bad input is one clear line on stderr and exit code 2, a signal is answered, output may be dropped."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, NoReturn

RESUMABLE = 75  # EX_TEMPFAIL of sysexits: the same command again resumes
SIGNALS = (  # of schedulers and terminals; SIGQUIT, Ctrl-\, still ends a process at once
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip
EXTRAS = {  # optional packages -> the extra of pyproject.toml that installs them
    "diffusers": "diffusers", "transformers": "diffusers", "accelerate": "diffusers", "torch_fidelity": "metrics",
    "wandb": "wandb", "bitsandbytes": "eight-bit", "pyarrow": "parquet",
}  # fmt: skip
DISK_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space"),
    errno.ENAMETOOLONG: "give a shorter name",
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


def require_installed(package: str, option: str) -> None:
    """
    Raises:
        UserError: option needs a package of EXTRAS that is not installed.
    """
    try:
        found = find_spec(package)
    except ModuleNotFoundError:  # the package that it is a part of is missing
        found = None
    if found is None:
        raise UserError(f"{option} needs {package}, which is not installed: {install(package)}")


def install(package: str) -> str:
    return f'pip install "fgm[{EXTRAS[package]}]"'


def missing_package(error: BaseException | None) -> str | None:
    """Return the package of EXTRAS whose absence is the error's cause, else None."""
    seen: list[BaseException] = []  # a chain of causes and contexts can be a circle
    while error is not None and error not in seen:
        seen.append(error)
        package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if package in EXTRAS:
            return package
        error = error.__cause__ or error.__context__
    return None


def entry(main: Callable[[list[str]], Any], usage: str | None) -> None:
    """Run a command on the process's arguments; a mistake, a missing package or a full disk is one line and exit code 2.

    Ranks above 0 print "error on rank <n>: ...".
    """
    with lenient_output():
        try:
            if usage and {"-h", "--help"} & set(sys.argv[1:]):
                print(usage)
            else:
                main(sys.argv[1:])
            sys.stdout.flush()
        except SystemExit as stop:
            if stop.code == RESUMABLE:
                ignore_signals()
            raise
        except KeyboardInterrupt:
            print("interrupted: the same command again resumes from the last checkpoint", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            package = missing_package(error)
            line = unwritable(error) if not isinstance(error, UserError) else str(error)
            if package and install(package) not in str(error):
                line = f"{line or first_line(error)}: {install(package)}"
            if line is None:
                raise
            print(f"error{f' on rank {rank()}' if rank() else ''}: {line}", file=sys.stderr)
            sys.exit(2)


class LenientStream:
    """A text stream that drops what nobody reads: behind `| head`, or of a terminal that was closed."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self.attempt(lambda: self.stream.flush())

    def attempt(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            number = os.open(os.devnull, os.O_WRONLY)
            with suppress(OSError):  # a stream in memory has no number
                os.dup2(number, self.stream.fileno())  # what is buffered goes there as well
            os.close(number)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lenient_output() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (LenientStream(stream) for stream in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        with suppress(OSError):  # a full disk: entry has reported it
            sys.stdout.flush()
            sys.stderr.flush()
        sys.stdout, sys.stderr = before


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
        ignore_signals()
        announce(f"{signal.Signals(number).name}: stopped; the same command again resumes")
        sys.exit(RESUMABLE)

    handle_signals(stop)


def handle_signals(handler: Callable[[int, Any], None]) -> None:
    """Call handler on SIGNALS, except those that the process was started to ignore, as nohup does."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Let no further signal change the exit code of a process that is ending."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def announce(line: str) -> None:
    """Write a line to stderr from a signal handler, which may have interrupted a print."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())


def rank() -> int:
    """Return this process's rank as set by torchrun, SLURM's srun or Lightning's launcher."""
    within_srun = "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS") or 1) > 1
    names = ("RANK", *(("SLURM_PROCID",) if within_srun else ()), "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if os.environ.get(name)), "0"))
