"""A full disk costs the steps since the last checkpoint, and no run."""

import contextlib
import ctypes
import io
import multiprocessing
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_checkpointing import QUIET, assert_bit_equal, exit_code, train
from toy_trainings import distillation

from fgm.training.checkpointing import LAST, export_weights, last_checkpoint
from fgm.utils.errors import entry

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
NOT_ALLOWED = 77


def on_a_small_disk(directory: Path, kilobytes: int) -> None:
    """Mount a file system that only this process sees; SystemExit(NOT_ALLOWED) if that is not permitted."""
    namespace = 0x00020000
    if ctypes.CDLL(None, use_errno=True).unshare(namespace):
        raise SystemExit(NOT_ALLOWED)
    for arguments in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(directory)]):
        if subprocess.run(["mount", *arguments], capture_output=True).returncode:
            raise SystemExit(NOT_ALLOWED)


def fill(directory: Path) -> Path:
    """The file that takes the space that is left."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler


def error_of(work: Callable[[], Any]) -> str:
    """Exit code and output of a command that fails."""
    sys.argv = ["command"]
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        try:
            entry(lambda _: work(), None)
        except SystemExit as stop:
            return f"{stop.code}: {printed.getvalue()}"
    return "0"


def through_a_full_disk(directory: Path, outside: Path) -> None:
    """Five steps, five more with a full disk, the others with space again; then a read-only disk."""
    on_a_small_disk(directory, 1024)
    run_dir, lines = directory / "run", []

    def until(step: int) -> None:
        with contextlib.suppress(SystemExit):
            modules.append(train(run_dir, 15, at=(step - 1, lambda: signal.raise_signal(signal.SIGTERM))))

    modules: list[Any] = []
    until(5)
    filler = fill(directory)
    until(10)
    lines.append(f"{last_checkpoint(run_dir, QUIET)[1]}")
    lines.append(error_of(lambda: export_weights(distillation(), run_dir)))
    filler.unlink()
    until(99)
    subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
    lines.append(error_of(lambda: export_weights(distillation(), run_dir)))
    shutil.copytree(run_dir, outside / "run")
    (outside / "lines.txt").write_text("\n".join(lines))


def test_full_disk_costs_steps_and_no_run(tmp_path: Path) -> None:
    disk, outside = tmp_path / "disk", tmp_path / "outside"
    disk.mkdir()
    outside.mkdir()
    code = exit_code(partial(through_a_full_disk, disk, outside))
    if code == NOT_ALLOWED:
        pytest.skip("no file system may be mounted here")
    assert code == 0
    train(tmp_path / "whole", 15)
    step, export, blank, read_only, *_ = (outside / "lines.txt").read_text().splitlines()
    assert step == "5" and not blank
    assert export.startswith("2: error: ") and "No space left on device: free some space" in export
    assert read_only.startswith("2: error: ") and "Read-only file system" in read_only
    printed = (outside / "run" / "printed.txt").read_text()
    failed = f"warning: {disk / 'run' / LAST} is not written (No space left on device: free some space): the one of step 5 remains\n"
    assert printed.count(failed) == 5 and printed.count("SIGTERM: stopped after step") == 2
    assert printed.count("resuming from step 5 of 15") == 2
    assert_bit_equal(tmp_path / "whole", outside / "run")
