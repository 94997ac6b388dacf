"""A run that is asked to stop, by whom and as often as it may be, is saved and ends with 75 on every rank."""

import multiprocessing
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from killed_runs import state, weights
from own_time import seconds_until
from ranks import free_port
from rich.console import Console
from stopped_ranks import ended, reached, started, told, train
from test_strategies import children, start
from two_ranks import LATE

from fgm.cli.config import digest, read_recipe, run_name
from fgm.cli.runs import is_done, write_yaml
from fgm.training import checkpoints, stopping
from fgm.training.checkpointing import SaveLast, StopRequest
from fgm.utils.errors import RESUMABLE, UserError

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT


@pytest.mark.parametrize(
    "whom, number, times",
    [((1,), USR1, 1), ((0, 1), TERM, 3), ((0, 1), INT, 2)],
    ids=["one rank", "all, and passed on twice", "Ctrl-C, and passed on"],
)
def test_ranks_that_a_signal_meets_end_with_75_within_ten_seconds(
    whom: tuple[int, ...], number: int, times: int, tmp_path: Path
) -> None:
    ranks = started(tmp_path, 25, pause=0.1)
    reached(tmp_path, 4)
    for _ in range(times):
        for r in whom:
            os.kill(ranks[r].pid, number)
        time.sleep(0.02)
    codes, seconds = ended(ranks)
    assert codes == [RESUMABLE, RESUMABLE] and seconds < 10
    (line,) = [line for line in (tmp_path / "said.txt").read_text().splitlines() if "stopped after cycle" in line]
    met = signal.Signals(number).name if 0 in whom else "another rank was asked to stop"
    assert line == f"{met}: stopped after cycle {int(weights(tmp_path)['cycle'])}; the same command again goes on"
    assert int(weights(tmp_path)["cycle"]) < 25


@pytest.mark.parametrize("late", [[], ["late"]], ids=["launcher", "all, and the first rank is late"])
def test_lightning_s_launcher_ends_with_75_within_ten_seconds(late: list[str], tmp_path: Path) -> None:
    """Interpreters that end included. The launcher, rank 0, kills itself when another rank is gone, unless told not to;
    met alone, it brings the others along."""
    process = start(tmp_path, "ddp", 300, "slow", *late)
    in_cycle(3, process)
    pids = [process.pid, *children(process.pid)]
    for pid in pids if late else pids[:1]:
        os.kill(pid, TERM)
    assert seconds_until(lambda: process.poll() is not None, pids) < (10 + LATE if late else 10)
    assert process.returncode == RESUMABLE
    assert process.communicate()[0].count("stopped after cycle") == 1
    assert 3 < int(weights(tmp_path)["cycle"]) < 300


def test_torchrun_saves_its_ranks_and_says_75_of_them(tmp_path: Path) -> None:
    """Its own exit code is 1 whatever its ranks' are. Met itself, it passes the signal on to ranks that have met it."""
    under = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    process = start(tmp_path, "ddp", 300, "slow", under=under)
    in_cycle(3, process)
    pids = [process.pid, *children(process.pid)]
    for pid in reversed(pids):
        os.kill(pid, TERM)
    assert seconds_until(lambda: process.poll() is not None, pids) < 10
    assert process.communicate()[0].count("stopped after cycle") == 1
    assert process.returncode == 1 and 3 < int(weights(tmp_path)["cycle"]) < 300


def in_cycle(cycle: int, process: Any) -> None:
    next(line for line in process.stdout if re.match(rf"rank 1 cycle {cycle}", line))


def test_a_signal_while_the_last_checkpoint_is_written_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = SaveLast.save
    monkeypatch.setattr(SaveLast, "save", lambda self, trainer: (save(self, trainer), signal.raise_signal(TERM)))
    assert ended(started(tmp_path, 3, world=1, save_every=100))[0] == [RESUMABLE]
    assert "SIGTERM: stopped after cycle 3" in (tmp_path / "said.txt").read_text()
    monkeypatch.undo()
    assert ended(started(tmp_path, 3, world=1))[0] == [0]
    assert int(weights(tmp_path)["cycle"]) == 3


def test_a_second_signal_is_obeyed_at_once_when_it_is_meant_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: now[0]))
    request = StopRequest(Console(quiet=True))
    for later in (0.0, stopping.GRACE):
        now[0] = 100 + later
        request.note(INT, None)
    assert request.received == "SIGINT"
    now[0] += 0.1
    with pytest.raises(KeyboardInterrupt):
        request.note(INT, None)


# the clock


def test_the_first_rank_s_clock_makes_checkpoints_on_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0's tells 25 s a cycle, the other's an hour; a checkpoint is due after 60 s."""
    save = SaveLast.save

    def noted(self: SaveLast, trainer: Any) -> None:
        with (tmp_path / f"saved {trainer.global_rank}.txt").open("a") as file:
            file.write(f"{trainer.global_step} ")
        save(self, trainer)

    def clock() -> float:
        r = os.environ["RANK"]
        return (25.0 if r == "0" else 3600.0) * (told(tmp_path / f"{r}.txt") + 1)

    monkeypatch.setattr(SaveLast, "save", noted)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=clock))
    assert ended(started(tmp_path, 8, save_every=100, save_minutes=1))[0] == [0, 0]
    assert {(tmp_path / f"saved {r}.txt").read_text() for r in (0, 1)} == {"3 6 8 "}


# another number of ranks


def test_another_number_of_ranks_is_refused_or_asked_for_and_counted(tmp_path: Path) -> None:
    ranks = started(tmp_path, 12, pause=0.1)
    reached(tmp_path, 3)
    os.kill(ranks[0].pid, TERM)
    assert ended(ranks)[0] == [RESUMABLE, RESUMABLE]
    cycle = int(weights(tmp_path)["cycle"])
    assert state(tmp_path)["world"] == {"ranks": 2, "images_seen": cycle * 2 * 8}
    with pytest.raises(UserError) as refusal:
        train(tmp_path, 12)
    before, what = (
        f"cycle {cycle} was reached on 2 ranks, and 1 rank ",
        "with other noise and order of data, and a batch",
    )
    change = f"{what} of 8 in place of 16"
    remedy = "give allow_world_size_change=true, or as many devices as before"
    assert str(refusal.value) == f"{before}would go on: {change}; {remedy}"
    assert int(weights(tmp_path)["cycle"]) == cycle
    train(tmp_path, 12, change="accept")
    assert state(tmp_path)["world"] == {"ranks": 1, "images_seen": cycle * 2 * 8 + (12 - cycle) * 8}
    assert f"allow_world_size_change=true: {before}go on: {change}\n" in (tmp_path / "said.txt").read_text()


def test_another_number_of_devices_is_another_config_unless_it_is_accepted(tmp_path: Path) -> None:
    place, several = f"run_dir={tmp_path}", ["strategy=ddp", "trainer.devices=2"]
    write_yaml(read_recipe("digits_fgm", [place, *several]), tmp_path / "config.yaml")
    for other in ([], ["strategy=ddp", "trainer.devices=4"], ["strategy=ddp", "trainer.devices=1", "strategy.nodes=2"]):
        with pytest.raises(UserError, match=r"; or go on with these devices: allow_world_size_change=true$"):
            is_done(read_recipe("digits_fgm", [place, *other]), tmp_path)
        accepted = read_recipe("digits_fgm", [place, *other, "allow_world_size_change=true"])
        assert not is_done(accepted, tmp_path)
        assert digest(accepted) == digest(read_recipe("digits_fgm", other)), "it is not what a run is"
        with pytest.raises(UserError, match=r"differs in seed\): delete it or give run_dir=$"):
            is_done(accepted | {"seed": 7}, tmp_path)


def test_how_often_it_is_saved_is_not_what_a_run_is() -> None:
    often = ["training.save_every_minutes=0.5"]
    assert run_name("digits_fgm", often) == "digits_fgm"
    assert digest(read_recipe("digits_fgm", often)) == digest(read_recipe("digits_fgm", []))
    with pytest.raises(UserError, match="save_minutes"):
        read_recipe("digits_fgm", ["training.save_every_minutes=0"])
