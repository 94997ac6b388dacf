"""A checkpoint is complete or absent wherever a process dies, and a killed run ends as if nothing had happened."""

import contextlib
import errno
import io
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from toy_trainings import CONFIG, distillation, flat, last_state, place

from fgm.training import checkpointing
from fgm.training.checkpointing import (
    LAST,
    PREVIOUS,
    AtomicCheckpointIO,
    damage,
    last_checkpoint,
    saved_step,
)
from fgm.training.trainer import fit
from fgm.utils.errors import RESUMABLE, UserError

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
DIED = 9
QUIET = Console(quiet=True)


def forked(work: Callable[[], Any]) -> Any:
    """A process that does it, started; it imports nothing anew."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def exit_code(work: Callable[[], Any]) -> int:
    process = forked(work)
    process.join()
    return process.exitcode


def train(run_dir: Path, steps: int, save_every: int = 1, at: tuple[int, Callable[[], Any]] = (-1, bool)) -> Any:
    """Train to the last step, or resume; call something in the middle of a step. Printed lines are in printed.txt."""
    torch.set_num_threads(1)
    run_dir.mkdir(parents=True, exist_ok=True)
    module = distillation(config=replace(CONFIG, max_steps=steps, save_every_n_steps=save_every, log_every_n_steps=2))
    step = module.training_step

    def training_step(batch: Any) -> None:
        if int(module.step) == at[0]:
            at[1]()
        step(batch)

    module.training_step = training_step  # type: ignore[method-assign]
    with (run_dir / "printed.txt").open("a") as printed:
        fit(module, place(run_dir, Console(file=printed, soft_wrap=True)))
    return module


def assert_bit_equal(a: Path, b: Path) -> None:
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    ours, theirs = (flat({key: last_state(run_dir)[key] for key in keys}) for run_dir in (a, b))
    assert ours.keys() == theirs.keys()
    same = {k: torch.equal(x, theirs[k]) if isinstance(x, torch.Tensor) else x == theirs[k] for k, x in ours.items()}
    assert all(same.values())
    assert (a / "metrics.csv").read_text() == (b / "metrics.csv").read_text()


def test_run_killed_at_random_moments_ends_bit_equal(tmp_path: Path) -> None:
    """SIGKILL: every fourth time while the run starts, else within three steps of a checkpoint, so while writing too."""
    steps, whole, last = 60, tmp_path / "whole", tmp_path / "killed" / LAST
    began, process = time.perf_counter(), forked(partial(train, whole, steps))
    while process.is_alive() and not (whole / LAST).exists():
        time.sleep(0.002)
    opening, first = time.perf_counter() - began, time.perf_counter()
    process.join()
    step, reached, rng = (time.perf_counter() - first) / steps, [], random.Random(0)
    for i in range(6):
        process, before = forked(partial(train, tmp_path / "killed", steps)), written(last)
        while i % 4 != 3 and process.is_alive() and written(last) == before:
            time.sleep(0.002)
        time.sleep(rng.random() * (opening if i % 4 == 3 else 3 * step))
        process.kill()
        process.join()
        assert process.exitcode, "the run must be long enough to be killed every time"
        reached.append(last_checkpoint(tmp_path / "killed", QUIET)[1])
    assert reached == sorted(reached) and len(set(reached)) >= 4 and reached[-1] < steps
    assert exit_code(partial(train, tmp_path / "killed", steps)) == 0
    assert_bit_equal(whole, tmp_path / "killed")


def written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal_ends_a_run_with_exit_code_75_and_it_resumes_bit_exactly(number: int, tmp_path: Path) -> None:
    stopped = partial(train, tmp_path / "stopped", 12, 1000)
    assert exit_code(partial(stopped, at=(5, lambda: signal.raise_signal(number)))) == RESUMABLE
    assert f"{signal.Signals(number).name}: stopped after step 6" in (tmp_path / "stopped" / "printed.txt").read_text()
    assert exit_code(stopped) == exit_code(partial(train, tmp_path / "whole", 12, 1000)) == 0
    assert_bit_equal(tmp_path / "whole", tmp_path / "stopped")


# writing

SIZE = 5000


def save(directory: Path, step: int, **options: Any) -> None:
    content = {"state_dict": {"step": torch.tensor(step), "w": torch.full((SIZE,), float(step))}}
    AtomicCheckpointIO(options.pop("console", QUIET), **options).save_checkpoint(content, directory / LAST)


def intact(directory: Path) -> tuple[int, list[int]]:
    """The step to resume from, and those of all checkpoints, each complete and of one step's weights."""
    paths = [path for path in (directory / LAST, directory / PREVIOUS) if path.exists()]
    for path in paths:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert damage(path) is None and state["w"].eq(float(state["step"])).all()
    return last_checkpoint(directory, QUIET)[1], [saved_step(path) for path in paths]


def dies_before(line: int, directory: Path, step: int) -> None:
    """Save, and die before the line-th line of checkpointing.py that this takes."""
    passed = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal passed
        if frame.f_code.co_filename != checkpointing.__file__:
            return None
        passed += event == "line"
        if passed > line:
            os._exit(DIED)
        return trace

    sys.settrace(trace)
    save(directory, step)
    os._exit(0)


def test_process_may_die_before_any_line_of_a_save(tmp_path: Path) -> None:
    """Each one starts from what the one before it left, temporary files included."""
    save(tmp_path, 0)
    save(tmp_path, 1)
    reached, line = [1], 0
    while exit_code(partial(dies_before, line, tmp_path, reached[-1] + 1)) == DIED:
        now, saved = intact(tmp_path)
        assert now in (reached[-1], reached[-1] + 1) and len(saved) == 2
        reached.append(now)
        line += 1
    assert line > 15 and intact(tmp_path)[0] == reached[-1] + 1
    assert reached[-1] > 1, "some die after the new file is in place"
    assert sorted(p.name for p in (tmp_path / LAST).parent.iterdir()) == ["last.ckpt", "previous.ckpt"]


def limited(directory: Path, step: int, size: int, action: Any, console: Console = QUIET) -> None:
    """Save where no file may grow beyond a size: the kernel kills (SIG_DFL) or writing fails (SIG_IGN)."""
    signal.signal(signal.SIGXFSZ, action)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    save(directory, step, console=console)


def test_process_may_be_killed_at_any_byte_of_a_save(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    full = (tmp_path / LAST).stat().st_size
    for size in range(0, full, full // 12):
        assert exit_code(partial(limited, tmp_path, 3, size, signal.SIG_DFL)) == -signal.SIGXFSZ
        assert intact(tmp_path) == (2, [2, 1])
    assert exit_code(partial(limited, tmp_path, 3, 2 * full, signal.SIG_DFL)) == 0 and intact(tmp_path) == (3, [3, 2])


def test_failed_write_is_a_warning_that_leaves_both_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    before = [(tmp_path / p).read_bytes() for p in (LAST, PREVIOUS)]

    def fails() -> None:
        printed = io.StringIO()
        limited(tmp_path, 3, 2000, signal.SIG_IGN, Console(file=printed, soft_wrap=True))
        os._exit(DIED if "(File too large: free some space): the one of step 2 remains" in printed.getvalue() else 1)

    assert exit_code(fails) == DIED
    assert [(tmp_path / p).read_bytes() for p in (LAST, PREVIOUS)] == before
    assert sorted(p.name for p in (tmp_path / LAST).parent.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_only_errors_of_the_disk_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    for error in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("CUDA error")):
        monkeypatch.setattr(torch, "save", partial(raises, error))
        with (
            pytest.raises(RuntimeError, match="CUDA error")
            if isinstance(error, RuntimeError)
            else contextlib.nullcontext()
        ):
            save(tmp_path, 2)
    assert intact(tmp_path) == (1, [1])


def raises(error: Exception, *_: Any) -> None:
    raise error


# reading


def test_flipped_bit_is_detected_or_changes_no_weight(tmp_path: Path) -> None:
    save(tmp_path, 2)
    last, raw, whole = tmp_path / LAST, (tmp_path / LAST).read_bytes(), last_state(tmp_path)["state_dict"]
    start, rng, detected = raw.index(torch.full((SIZE,), 2.0).numpy().tobytes()), random.Random(0), 0
    end = start + 4 * SIZE
    for bit in [*(rng.randrange(8 * len(raw)) for _ in range(100)), *range(8 * start, 8 * end, 4000)]:
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        last.write_bytes(changed)
        if damage(last):
            detected += 1
        else:
            assert not 8 * start <= bit < 8 * end
            assert all(torch.equal(whole[name], w) for name, w in last_state(tmp_path)["state_dict"].items())
    assert detected > 60


def test_run_resumes_from_the_previous_checkpoint_if_the_last_one_is_damaged(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    last, previous, printed = tmp_path / LAST, tmp_path / PREVIOUS, io.StringIO()
    last.write_bytes(last.read_bytes()[:1000])
    assert last_checkpoint(tmp_path, Console(file=printed, soft_wrap=True)) == (previous, 1)
    assert printed.getvalue() == f"warning: {last} is damaged (BadZipFile): resuming from {previous}\n"
    before = previous.read_bytes()
    save(tmp_path, 3, trusted=False)
    assert previous.read_bytes() == before, "a damaged file must not replace an intact one"
    previous.write_bytes(b"")
    last.unlink()
    with pytest.raises(UserError, match=r"previous\.ckpt cannot be read"):
        last_checkpoint(tmp_path, QUIET)
