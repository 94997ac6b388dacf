"""A checkpoint is whole or absent, whatever line or byte of its writing a process dies in, however full the disk."""

import contextlib
import ctypes
import io
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import run, tiny_config
from rich.console import Console
from test_survival import assert_bit_equal

import fgm.cli.train
from fgm.cli.build import build
from fgm.cli.synthetic import untrained
from fgm.training import checkpoints
from fgm.training.checkpointing import (
    LAST,
    PREVIOUS,
    AtomicCheckpointIO,
    damage,
    export_weights,
    last_checkpoint,
    read_cycle,
)
from fgm.training.trainer import fit
from fgm.utils.errors import entry

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
DIED = 9


def forked(work: Callable[[], Any]) -> int:
    """The exit code of a process that does it: 0, DIED or minus a signal."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def save(directory: Path, cycle: int) -> None:
    held = {"state_dict": {"cycle": torch.tensor(cycle), "w": torch.full((5000,), float(cycle))}}
    AtomicCheckpointIO(Console(quiet=True)).save_checkpoint(held, directory / LAST)


def whole(directory: Path) -> tuple[int, list[int]]:
    """The cycle to go on from, and those of all checkpoints; every one of them whole, and of one cycle's weights."""
    found = [path for path in (directory / LAST, directory / PREVIOUS) if path.exists()]
    for path in found:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert damage(path) is None and state["w"].eq(float(state["cycle"])).all()
    return last_checkpoint(directory, Console(quiet=True))[1], [read_cycle(path) for path in found]


def dies_before(line: int, directory: Path, cycle: int) -> None:
    """Saves, and dies before the line-th line of checkpoints.py that this takes."""
    passed = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal passed
        if frame.f_code.co_filename != checkpoints.__file__:
            return None
        passed += event == "line"
        if passed > line:
            os._exit(DIED)
        return trace

    sys.settrace(trace)
    save(directory, cycle)
    os._exit(0)


def test_a_process_may_die_before_any_line_of_a_save(tmp_path: Path) -> None:
    """Each one goes on from what the one before it left behind, temporary files included."""
    save(tmp_path, 0)
    save(tmp_path, 1)
    reached, line = [1], 0
    while forked(partial(dies_before, line, tmp_path, reached[-1] + 1)) == DIED:
        now, kept = whole(tmp_path)
        assert now in (reached[-1], reached[-1] + 1) and len(kept) == 2
        reached.append(now)
        line += 1
    assert line > 15 and whole(tmp_path)[0] == reached[-1] + 1
    assert reached[-1] > 1, "some die when all is done but the tidying up"
    assert sorted(p.name for p in (tmp_path / LAST).parent.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_a_process_may_be_killed_at_any_byte_of_a_save(tmp_path: Path) -> None:
    """By the kernel, as it writes: SIGXFSZ where a file may grow no further."""

    def limited(size: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        save(tmp_path, 3)

    save(tmp_path, 1)
    save(tmp_path, 2)
    full = (tmp_path / LAST).stat().st_size
    for size in range(0, full, full // 12):
        assert forked(partial(limited, size)) == -signal.SIGXFSZ
        assert whole(tmp_path) == (2, [2, 1])
    assert forked(lambda: limited(2 * full)) == 0 and whole(tmp_path) == (3, [3, 2])


# disks


def on_a_small_disk(directory: Path, kilobytes: int) -> None:
    """A file system of its own for this process, which nobody else sees; SystemExit(77) where that is not allowed."""
    namespace = 0x00020000
    if ctypes.CDLL(None, use_errno=True).unshare(namespace):
        raise SystemExit(77)
    for arguments in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(directory)]):
        if subprocess.run(["mount", *arguments], capture_output=True).returncode:
            raise SystemExit(77)


def fill(directory: Path) -> Path:
    """The file that takes what is left."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return filler
    raise AssertionError


def until(config: dict[str, Any], cycle: int) -> Any:
    """The module of a run that is asked to stop in that cycle, counted from 0."""
    with (Path(config["run_dir"]) / "said.txt").open("a") as said:
        module, plan = build(untrained(config), Console(file=said, soft_wrap=True))
        step = module.training_step

        def watched(batch: Any) -> None:
            if int(module.cycle) == cycle:
                signal.raise_signal(signal.SIGTERM)
            step(batch)

        module.training_step = watched
        with contextlib.suppress(SystemExit):
            fit(module, plan)
    return module


def error_of(main: Callable[[list[str]], Any], *arguments: str) -> str:
    """What a command says that ends with exit code 2."""
    sys.argv = ["command", *arguments]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            entry(main, None)
        except SystemExit as stop:
            return f"{stop.code}: {said.getvalue()}"
    return "0"


def through_a_full_disk(directory: Path, outside: Path) -> None:
    """Five cycles, five more with the disk full, the others with room again; then a disk that may only be read."""
    on_a_small_disk(directory, 4096)
    config, told = tiny_config(directory / "run", 20), []
    (directory / "run").mkdir()
    until(config, 4)
    filler = fill(directory)
    module = until(config, 9)
    told.append(f"{int(module.cycle)} {last_checkpoint(directory / 'run', Console(quiet=True))[1]}")
    told.append(error_of(lambda _: export_weights(module, directory / "run")))
    filler.unlink()
    until(config, 99)
    subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
    told.append(error_of(fgm.cli.train.main, "experiment=digits_teacher", f"run_dir={directory}/other", "logger=csv"))
    shutil.copytree(directory / "run", outside / "run")
    (outside / "told.txt").write_text("\n".join(told))


def test_a_full_disk_costs_cycles_and_no_run(tmp_path: Path) -> None:
    disk, outside = tmp_path / "disk", tmp_path / "outside"
    disk.mkdir()
    outside.mkdir()
    code = forked(lambda: through_a_full_disk(disk, outside))
    if code == 77:
        pytest.skip("no file system may be mounted here")
    assert code == 0
    (tmp_path / "whole").mkdir()
    run(tiny_config(tmp_path / "whole", 20))
    cycles, export, blank, read_only, *_ = (outside / "told.txt").read_text().splitlines()
    assert cycles == "10 5" and not blank
    assert export.startswith("2: error: ") and export.endswith("No space left on device: free some space")
    assert read_only == f"2: error: {disk}/other: Read-only file system: make it writable, or give another place"
    said = (outside / "run" / "said.txt").read_text()
    last = disk / "run" / LAST
    failed = f"warning: {last} is not written (No space left on device: free some space): the one of cycle 5 stays\n"
    assert said.count(failed) == 5 and said.count("SIGTERM: stopped after cycle") == 2
    assert said.count("going on from cycle 5 of 20") == 2
    assert_bit_equal(tmp_path / "whole", outside / "run")
