"""A run has one process: the second says who holds it and leaves, and a file that two write is one of theirs."""

import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TINY, Said, finished, refused

import fgm.cli.evaluate
import fgm.cli.sample
from fgm.cli import train
from fgm.cli.config import compose_experiment
from fgm.utils import locks
from fgm.utils.errors import UserError
from fgm.utils.files import replacing
from fgm.utils.locks import STALE, holder, locked, require_free

pytestmark = pytest.mark.field
RUN = ["experiment=mixture_fgm", *TINY]


def held(folder: Path, ready: Any, seconds: float) -> None:
    with locked(folder):
        ready.set()
        time.sleep(seconds)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Any]:
    """Another process, which holds tmp_path/run."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=held, args=(tmp_path / "run", ready, 60))
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


def test_the_second_process_says_who_holds_the_run_and_leaves(
    other: Any, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    holds = f"is in use by process {other.pid} on {os.uname().nodename} since"
    for command in (train.main, train.record, fgm.cli.sample.main, fgm.cli.evaluate.main):
        line = refused(command, [*RUN, f"run_dir={tmp_path / 'run'}"], capsys, monkeypatch)
        assert holds in line and "give run_dir=" in line
    with pytest.raises(UserError, match=holds), locked(tmp_path / "run"):
        pass
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_the_other_ranks_of_a_run_are_no_second_process(
    other: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of torchrun, srun and Lightning's launcher: rank 0 may be ahead, and holds the run."""

    def enough(*_: Any) -> None:
        raise UserError("enough")

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(train, "build_run", enough)
    config = compose_experiment("mixture_fgm", [*RUN[1:], f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(UserError, match="enough"):
        train.train(config)


def test_a_lock_is_free_when_its_process_is_killed_or_waited_for(other: Any, tmp_path: Path) -> None:
    waits: list[str] = []
    other.kill()
    with locked(tmp_path / "run", wait=waits.append), locked(tmp_path / "run"):
        assert holder(tmp_path / "run") is None
    assert (tmp_path / "run" / ".lock").read_text() == "" and len(waits) <= 1
    require_free(tmp_path / "run")


@pytest.mark.parametrize(
    ("age", "flock", "free"), [(0, True, False), (STALE + 9, True, True), (0, False, False), (STALE + 9, False, True)]
)
def test_another_hosts_lock_counts_while_it_is_touched(
    age: float, flock: bool, free: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on file systems without flock, or where each host has its own."""
    file = tmp_path / ".lock"
    file.write_text(json.dumps({"host": "node7", "boot": "another", "pid": 1, "since": "noon"}))
    os.utime(file, (time.time() - age,) * 2)
    if not flock:
        monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    if free:
        with locked(tmp_path):
            assert json.loads(file.read_text())["pid"] == os.getpid()
        return
    with pytest.raises(UserError, match=r"process 1 on node7 since noon \(a lock of a process that is gone lapses"):
        require_free(tmp_path)
    with pytest.raises(UserError, match="process 1 on node7"), locked(tmp_path):
        pass


def unsupported(*_: Any) -> None:
    raise OSError(locks.errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("alive", [True, False])
def test_without_flock_a_process_of_this_host_is_looked_up(
    alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    gone = subprocess.Popen(["true"])
    gone.wait()
    pid = os.getppid() if alive else gone.pid
    (tmp_path / ".lock").write_text(json.dumps({"host": "here", "boot": locks.boot(), "pid": pid, "since": "noon"}))
    assert (holder(tmp_path) is not None) == alive


def test_a_holder_touches_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / ".lock", (0, 0))
        while (tmp_path / ".lock").stat().st_mtime == 0:
            time.sleep(0.01)


def test_a_run_that_another_process_finished_meanwhile_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    run = finished(tmp_path, "mixture_fgm", TINY)
    config = compose_experiment("mixture_fgm", run[1:])
    folder = Path(config["run_dir"])
    row = '{"results": [{"weights": "ema", "value": 0.5}]}'
    (folder / "results.json").unlink()
    monkeypatch.setattr(train.contract, "require_built", lambda *_: None)
    monkeypatch.setattr(train, "build_module", lambda *_: (folder / "results.json").write_text(row))
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("trained"))
    assert train.train(config) == 0.5


def test_two_processes_write_one_file_one_after_the_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    path = tmp_path / "results.json"

    def write(i: int) -> None:
        for _ in range(200):
            with replacing(path) as temporary:
                temporary.write_text(str(i) * 1000)

    writers = [context.Process(target=write, args=(i,)) for i in (1, 2)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0, 0] and len(set(path.read_text())) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
