"""A signal to any rank stops all ranks after the same step, saved, with exit code 75; as many ranks must resume."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from ranks import alone, free_port, torchrun
from rich.console import Console
from test_checkpointing import train as checkpointed
from toy_trainings import last_state, last_step
from two_ranks import LATE, distillation

from fgm.data.points import Ring
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.point_metrics import PointMetrics
from fgm.training import checkpointing
from fgm.training.checkpointing import Checkpointing
from fgm.training.distributed import DDP, SINGLE
from fgm.training.trainer import Run, fit
from fgm.utils.errors import RESUMABLE, SIGNALS, UserError, rank, resumable

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT
SCRIPT, PATIENCE, SECONDS = Path(__file__).with_name("two_ranks.py"), 300.0, 10


@pytest.fixture(autouse=True)
def without_other_ranks() -> Iterator[None]:
    with alone():
        yield


def train(folder: Path, steps: int, pause: float = 0.0, change: bool = False, **config: Any) -> None:
    """On as many ranks as the environment says; rank r writes its step to <r>.txt, rank 0 prints to printed.txt."""
    folder.mkdir(exist_ok=True)
    module = distillation(steps)
    module.config = replace(module.config, **config)
    step = module.training_step

    def slow_step(batch: Any) -> None:
        (folder / f"{rank()}.txt").write_text(f"{int(module.step)}")
        time.sleep(pause)
        step(batch)

    module.training_step = slow_step  # type: ignore[method-assign]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    with (folder / "printed.txt").open("a") as printed:
        console = Console(file=printed, soft_wrap=True, quiet=rank() > 0)
        evaluator = Evaluator(PointMetrics(Ring()), every=0, n_in_training=64, batch=32)
        trainer, strategy = partial(Trainer, accelerator="cpu", devices=world), SINGLE if world == 1 else DDP()
        place = Run(folder, "test", {"config_digest": "0"}, evaluator, console, trainer, strategy)
        fit(module, replace(place, allow_world_size_change=change))


def worker(environment: dict[str, str], folder: Path, steps: int, options: dict[str, Any]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    resumable()
    try:
        train(folder, steps, **options)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def started(folder: Path, steps: int, world: int = 2, **options: Any) -> list[Any]:
    """The ranks' processes, forked."""
    port, context = free_port(), multiprocessing.get_context("fork")
    environments = [torchrun(rank, world, port) if world > 1 else {} for rank in range(world)]
    ranks = [context.Process(target=worker, args=(e, folder, steps, options)) for e in environments]
    for process in ranks:
        process.start()
    return ranks


def ended(ranks: list[Any]) -> tuple[list[int | None], float]:
    """Exit codes, and the seconds until they are there."""
    try:
        seconds = seconds_until(lambda: not any(p.is_alive() for p in ranks), [p.pid for p in ranks])
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [process.exitcode for process in ranks], seconds


def wait_for_step(folder: Path, step: int) -> None:
    while not any(step_of(folder, r) >= step for r in (0, 1)):
        time.sleep(0.01)


def step_of(folder: Path, r: object) -> int:
    file = folder / f"{r}.txt"
    return int(file.read_text() or -1) if file.exists() else -1


def seconds_until(over: Callable[[], bool], pids: Sequence[int]) -> float:
    """Seconds from now, less those in which the processes wait for a processor: the machine may be busy."""
    pids, began = [*pids, os.getpid()], time.monotonic()
    first = {pid: waited(pid) for pid in pids}
    last = dict(first)
    while not over():
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.02)
        last = {pid: max(last[pid], waited(pid)) for pid in pids}
    return time.monotonic() - began - sum(last[pid] - first[pid] for pid in pids)


def waited(pid: int) -> float:
    """Seconds in which the process was ready and did not run, by Linux's schedstat; 0 elsewhere."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


@pytest.mark.parametrize("whom, number, times", [((1,), USR1, 1), ((0, 1), TERM, 3)], ids=["one rank", "all, thrice"])
def test_signalled_ranks_end_with_75_within_ten_seconds(
    whom: tuple[int, ...], number: int, times: int, tmp_path: Path
) -> None:
    ranks = started(tmp_path, 25, pause=0.1)
    wait_for_step(tmp_path, 4)
    for _ in range(times):
        for r in whom:
            os.kill(ranks[r].pid, number)
        time.sleep(0.02)
    codes, seconds = ended(ranks)
    assert codes == [RESUMABLE, RESUMABLE] and seconds < SECONDS
    (line,) = [line for line in (tmp_path / "printed.txt").read_text().splitlines() if "stopped after step" in line]
    cause = signal.Signals(number).name if 0 in whom else "another rank was asked to stop"
    assert line == f"{cause}: stopped after step {last_step(tmp_path)}; the same command resumes"
    assert last_step(tmp_path) < 25


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_signalled_launcher_saves_its_ranks_within_ten_seconds(launcher: str, tmp_path: Path) -> None:
    """Lightning's launcher is rank 0, which kills itself when another rank is gone, unless told not to, and here is late
    to end. torchrun passes the signal on to ranks that have already met it, and exits with 1 whatever its ranks do."""
    under = {
        "lightning": [],
        "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"],
    }
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    late = ["late"] if launcher == "lightning" else []
    command = [sys.executable, *under[launcher], str(SCRIPT), str(tmp_path), "300", *late]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean)
    assert process.stdout
    next(line for line in process.stdout if re.match(r"rank 1 step 3", line))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    pids = [process.pid, *map(int, children)]
    for pid in pids if late else reversed(pids):
        os.kill(pid, TERM)
    assert seconds_until(lambda: process.poll() is not None, pids) < SECONDS + (LATE if late else 0)
    assert process.returncode == (RESUMABLE if late else 1)
    assert process.communicate()[0].count("stopped after step") == 1
    assert 3 < last_step(tmp_path) < 300


def test_signal_while_the_last_checkpoint_is_written_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Checkpointing.save
    monkeypatch.setattr(Checkpointing, "save", lambda self, trainer: (save(self, trainer), signal.raise_signal(TERM)))
    assert ended(started(tmp_path, 3, world=1))[0] == [RESUMABLE]
    assert "SIGTERM: stopped after step 3" in (tmp_path / "printed.txt").read_text()
    monkeypatch.undo()
    assert ended(started(tmp_path, 3, world=1))[0] == [0] and last_step(tmp_path) == 3


@pytest.mark.field
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_every_signal_is_acknowledged_and_ends_the_step_saved_whatever_follows(
    number: signal.Signals, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others come within the same step, while the checkpoint is written, and while the process ends."""
    save = Checkpointing.save

    def signalled() -> None:
        for each in (number, *SIGNALS):
            signal.raise_signal(each)

    monkeypatch.setattr(Checkpointing, "save", lambda self, trainer: (signalled(), save(self, trainer)))
    resumable()
    with pytest.raises(SystemExit) as stop:
        checkpointed(tmp_path, 4, save_every=9, at=(2, signalled))
    assert stop.value.code == RESUMABLE and last_step(tmp_path) == 3
    assert f"{number.name}: stopped after step 3" in (tmp_path / "printed.txt").read_text()
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == f"{number.name}: saving after this step, which may take a while"
    assert set(lines[1:]) == {"SIGINT: already saving after this step; Ctrl-\\ ends it at once, unsaved"}


@pytest.mark.field
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_while_a_stopped_process_ends_does_not_change_its_exit_code(number: signal.Signals) -> None:
    """Python's own handlers are gone by then."""
    ending = f"""
import atexit, signal, sys
from fgm.utils.errors import entry, resumable
def main(_):
    resumable()
    signal.raise_signal({number:d})
atexit.register(lambda: [signal.raise_signal(each) for each in {[int(each) for each in SIGNALS]}])
entry(main, None)"""
    done = subprocess.run([sys.executable, "-c", ending], capture_output=True, text=True)
    assert done.returncode == RESUMABLE
    assert done.stderr == f"{number.name}: stopped; the same command again resumes\n"


@pytest.mark.field
def test_a_signal_that_the_process_was_started_to_ignore_is_ignored(tmp_path: Path) -> None:
    """As nohup and a shell's & start it."""
    for number in (signal.SIGHUP, INT):
        signal.signal(number, signal.SIG_IGN)
    resumable()
    checkpointed(
        tmp_path, 4, save_every=9, at=(2, lambda: [signal.raise_signal(number) for number in (signal.SIGHUP, INT)])
    )
    assert last_step(tmp_path) == 4


def test_clock_of_rank_0_saves_checkpoints_on_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0's shows 25 s a step, the other's an hour; a checkpoint is due after 60 s."""
    save = Checkpointing.save

    def noted(self: Checkpointing, trainer: Any) -> None:
        with (tmp_path / f"saved {trainer.global_rank}.txt").open("a") as file:
            file.write(f"{trainer.global_step} ")
        save(self, trainer)

    def clock() -> float:
        r = os.environ["RANK"]
        return (25.0 if r == "0" else 3600.0) * (step_of(tmp_path, r) + 1)

    monkeypatch.setattr(Checkpointing, "save", noted)
    monkeypatch.setattr(checkpointing, "time", SimpleNamespace(monotonic=clock))
    assert ended(started(tmp_path, 8, save_every_minutes=1))[0] == [0, 0]
    assert {(tmp_path / f"saved {r}.txt").read_text() for r in (0, 1)} == {"3 6 8 "}


def test_resume_on_another_number_of_ranks_is_rejected_or_allowed_and_counted(tmp_path: Path) -> None:
    ranks = started(tmp_path, 12, pause=0.1)
    wait_for_step(tmp_path, 3)
    os.kill(ranks[0].pid, TERM)
    assert ended(ranks)[0] == [RESUMABLE, RESUMABLE]
    step = last_step(tmp_path)
    assert last_state(tmp_path)["world"] == {"ranks": 2, "images_seen": step * 2 * 8}
    with pytest.raises(UserError) as rejection:
        train(tmp_path, 12)
    change = (
        f"step {step} was reached on 2 ranks; on 1 the run continues with other noise and data order, and a batch of 8 "
        "instead of 16"
    )
    assert str(rejection.value) == f"{change}; give allow_world_size_change=true, or as many devices as before"
    assert last_step(tmp_path) == step
    train(tmp_path, 12, change=True)
    assert last_state(tmp_path)["world"] == {"ranks": 1, "images_seen": step * 2 * 8 + (12 - step) * 8}
    assert f"allow_world_size_change=true: {change}\n" in (tmp_path / "printed.txt").read_text()
