"""One process at a time in a run's folder, on this machine and on others that share its file system.

<folder>/.lock holds host, boot, pid and since of the process that writes there; it is empty if there is none. flock decides
among processes of one kernel, and on NFS among hosts. Where it does not reach, the content decides: the holder touches the
file every BEAT seconds, and a lock of another host that was not touched for STALE seconds is of a process that is gone.
"""

import errno
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from fgm.utils.errors import UserError

NAME, BEAT, STALE, PAUSE = ".lock", 20.0, 120.0, 0.5  # seconds
HELD: set[Path] = set()  # folders that this process holds
UNKNOWN = "another process"
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(folder: Path, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a folder, which is made if there is none; a process may do so several times.

    Args:
        wait: is called once with who holds the folder, if that is another process, before it is waited for.

    Raises:
        UserError: another process holds the folder, and there is no wait.
    """
    key = folder.resolve()
    if key in HELD:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("a+") as file:
        other = take(file)
        if other == UNKNOWN:  # who looks or begins at this moment
            time.sleep(PAUSE)
            other = take(file)
        if other and wait is None:
            raise UserError(in_use(folder, other))
        if other and wait:
            wait(other)
        while other:
            time.sleep(PAUSE)
            other = take(file)
        over = threading.Event()
        threading.Thread(target=touch, args=(folder / NAME, over), daemon=True).start()
        HELD.add(key)
        try:
            yield
        finally:
            HELD.remove(key)
            over.set()
            with suppress(OSError):
                file.truncate(0)


def require_free(folder: Path) -> None:
    """
    Raises:
        UserError: another process holds the folder.
    """
    other = holder(folder)
    if other:
        raise UserError(in_use(folder, other))


def holder(folder: Path) -> str | None:
    """Return who holds a folder, if that is another process."""
    if folder.resolve() in HELD:
        return None
    try:
        with (folder / NAME).open() as file:
            return blocked(file, fcntl.LOCK_SH)
    except OSError:  # there is no lock, or it is not for us to read
        return None


def in_use(folder: Path, other: str) -> str:
    return f"{folder} is in use by {other}: wait for it, stop it, or give run_dir=<another folder>"


def take(file: TextIO) -> str | None:
    """Become the holder of an open lock, or return who is."""
    other = blocked(file, fcntl.LOCK_EX)
    if other is None:
        me = {"host": platform.node(), "boot": boot(), "pid": os.getpid()}
        file.truncate(0)
        file.write(json.dumps(me | {"since": datetime.now(UTC).isoformat(timespec="seconds")}))
        file.flush()
    return other


def blocked(file: TextIO, kind: int) -> str | None:
    """Return who holds an open lock; None if it was free, or its holder is gone, and now has a flock of this kind."""
    known = True
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return describe(content(file))
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        known = False
    other = content(file)
    if not other:
        return None
    if other.get("boot") == boot():
        return None if known or not alive(other.get("pid")) else describe(other)
    if time.time() - os.fstat(file.fileno()).st_mtime > STALE:
        return None
    if known:
        fcntl.flock(file, fcntl.LOCK_UN)
    return f"{describe(other)} (a lock of a process that is gone lapses after {STALE:.0f} s)"


def content(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    try:
        found = json.loads(file.read() or "{}")
    except ValueError:  # half of it is written yet
        return {}
    return found if isinstance(found, dict) else {}


def describe(other: dict[str, Any]) -> str:
    if "pid" not in other:
        return UNKNOWN
    return f"process {other['pid']} on {other.get('host')} since {other.get('since')}"


def boot() -> str:
    """Return what tells one running kernel from another."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.exists() else platform.node()


def alive(pid: Any) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, TypeError):  # another user's
        return True
    return True


def touch(file: Path, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with suppress(OSError):
            os.utime(file)
