"""Where commands run: without a home, in an allocation, behind a closed pipe, beside another process, under odd names."""

import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_runs import Said, finished, refused
from toy_trainings import distillation, last_step, on_cpu, place

import fgm.cli.evaluate
import fgm.cli.sample
from fgm.cli import train
from fgm.cli.config import LONGEST, compose_experiment, run_name
from fgm.training.loggers import build_loggers, wandb_if_configured, wandb_logger
from fgm.training.trainer import count_devices, fit
from fgm.utils import locks
from fgm.utils.distributed import PLACES, SIZES, leave_job, ranks_of_environment
from fgm.utils.errors import UserError, entry, rank, require_installed
from fgm.utils.files import read_text, replacing, require_place
from fgm.utils.locks import STALE, holder, locked, require_free
from fgm.utils.printing import plain_console

pytestmark = pytest.mark.field
TINY = [
    "experiment=mixture_fgm", "training.max_steps=2", "training.batch_size=8", "evaluation.every=0", "evaluation.n=64",
    "evaluation.n_in_training=64", "method.teacher_steps=2", "network.width=8", "network.depth=1",
    "method.generator_init=random", "method.online_init=random",
]  # fmt: skip
HOMELESS = """
import os, pwd, runpy, sys
def nobody(*_): raise KeyError("getpwuid(): uid not found: 12345")
pwd.getpwuid = pwd.getpwnam = nobody
os.environ.pop("HOME", None)
runpy.run_module("fgm.cli.train", run_name="__main__", alter_sys=True)
"""
KEY = "0" * 40


def test_a_user_without_a_home_trains_in_an_allocation_though_nobody_reads_what_is_printed(tmp_path: Path) -> None:
    """As `docker run --user` within `sbatch --ntasks=4`, with torchrun's leftovers, piped into `head -n 1`."""
    job = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NODELIST": "a[0-3]"}
    command = [sys.executable, "-c", HOMELESS, *TINY, f"run_dir={tmp_path / 'run'}"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=clean | job | {"WORLD_SIZE": "2", "RANK": "1"},
    ) as process:  # fmt: skip
        assert process.stdout and process.stderr
        first = process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    assert first.startswith("WORLD_SIZE=2, SLURM_NTASKS=4: this run uses one device and one process")
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "run" / "results.json").read_text())["results"]


# Allocations that are larger than the run


@pytest.mark.parametrize("variables", [
    {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_PROCID": "3", "SLURM_STEP_ID": "0", "SLURM_LOCALID": "3"},
    {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"},
    {"RANK": "3", "LOCAL_RANK": "3", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "4"},
    {"WORLD_SIZE": "4", "RANK": ""},
    {"LSB_JOBID": "7", "LSB_DJOB_RANKFILE": "/none", "JSM_NAMESPACE_LOCAL_RANK": "1", "JSM_NAMESPACE_SIZE": "2"},
], ids=["srun", "sbatch", "torchrun", "half of torchrun", "LSF"])  # fmt: skip
def test_a_run_of_one_device_trains_alone_in_any_allocation(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*SIZES, *PLACES):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    line = leave_job()
    assert line and "this run uses one device and one process" in line and rank() == 0
    module = distillation()
    fit(module, place(tmp_path, trainer=on_cpu()))
    assert last_step(tmp_path) == 8


def test_a_run_outside_any_job_says_nothing_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SIZES:
        monkeypatch.setenv(name, "1")
    assert leave_job() is None


def test_processes_that_nobody_started_together_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE = 4 is set, and RANK"), ranks_of_environment():
        pass


@pytest.mark.parametrize(("devices", "count"), [(2, 2), ("2", 2), ("0,2", 2), ("0,", 1), ([1, 3, 5], 3)])
def test_devices_are_counted_as_lightning_counts_them(devices: Any, count: int) -> None:
    assert count_devices(devices) == count


@pytest.mark.parametrize("devices", ["two", "0;1", "-2"])
def test_devices_that_are_no_number_are_one_line(devices: str) -> None:
    with pytest.raises(UserError, match="give a number of devices"):
        count_devices(devices)


# W&B's account


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """What a run says of its loggers in an environment with this ~/.netrc; wandb_logger is replaced, and no server is asked."""
    wandb = pytest.importorskip("wandb")
    from wandb.sdk import wandb_login, wandb_setup
    from wandb.sdk.lib import wbauth

    for name in [name for name in os.environ if name.startswith("WANDB") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(wandb_login, "_print_logged_in_message", lambda *_, **__: None)
    monkeypatch.setattr("fgm.training.loggers.wandb_logger", lambda *_: print("W&B"))

    def say(netrc: str | None = None, mode: int = 0o600, **variables: str) -> list[str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if netrc is not None:
            (tmp_path / ".netrc").write_text(netrc)
            (tmp_path / ".netrc").chmod(mode)
        wandb_setup.teardown()
        wbauth.unauthenticate_session(update_settings=False)
        with (tmp_path / "said").open("w+") as file:
            console = Console(file=file, soft_wrap=True, markup=False)
            made = build_loggers({"wandb": wandb_if_configured}, run_dir=tmp_path, name="n", config={}, console=console)
            assert not made
            file.seek(0)
            return file.read().splitlines()

    yield say
    wandb_setup.teardown()
    wbauth.unauthenticate_session(update_settings=False)
    del wandb


def entry_of(host: str) -> str:
    return f"machine {host}\n  login user\n  password {KEY}\n"


@pytest.mark.parametrize(("netrc", "variables"), [
    (entry_of("api.wandb.ai"), {}),
    (entry_of("wandb.my.edu:8443"), {"WANDB_BASE_URL": "https://wandb.my.edu:8443"}),
    (entry_of("wandb.my.edu"), {"WANDB_BASE_URL": "http://wandb.my.edu"}),
    ("", {"WANDB_API_KEY": KEY}),
    ("machine {{ odd", {"WANDB_MODE": "offline"}),
], ids=["cloud", "own server with a port", "own server", "key", "offline"])  # fmt: skip
def test_an_account_is_found_where_wandb_finds_it(
    netrc: str, variables: dict[str, str], account: Any, capsys: Said
) -> None:
    assert account(netrc, **variables) == [] and capsys.readouterr().out == "W&B\n"


@pytest.mark.parametrize(("netrc", "variables", "line"), [
    ("", {}, "W&B is not configured: wandb login, or set WANDB_API_KEY or WANDB_MODE=offline"),
    (entry_of("api.wandb.ai"), {"WANDB_BASE_URL": "https://wandb.my.edu"}, "W&B is not configured"),
    ("machine {{ odd", {}, "W&B is not configured"),
    ("", {"WANDB_MODE": "disabled"}, "(WANDB_MODE=disabled)"),
    ("", {"WANDB_API_KEY": "short"}, "W&B did not start (WANDB_API_KEY invalid: API key must have 40+ characters"),
    ("", {"WANDB_BASE_URL": "nonsense"}, "W&B did not start (1 validation error"),
], ids=["none", "another server's", "odd netrc", "disabled", "bad key", "bad server"])  # fmt: skip
def test_without_an_account_one_line_says_why(netrc: str, variables: dict[str, str], line: str, account: Any) -> None:
    (said,) = account(netrc, **variables)
    assert line in said


def test_a_netrc_that_cannot_be_read_is_none(account: Any, tmp_path: Path) -> None:
    (tmp_path / ".netrc").mkdir()
    (said,) = account()
    assert "W&B is not configured" in said


def test_wandb_that_is_not_installed_is_named_with_its_extra(account: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgm.training.loggers.find_spec", lambda name: None)
    (said,) = account()
    assert 'pip install "fgm[wandb]"' in said


@pytest.mark.parametrize(("given", "variables", "found"), [
    ({}, {}, ("fgm", None)),
    ({}, {"WANDB_PROJECT": "mine", "WANDB_ENTITY": "team"}, ("mine", "team")),
    ({"project": "its", "entity": "lab"}, {"WANDB_PROJECT": "mine", "WANDB_ENTITY": "team"}, ("its", "lab")),
], ids=["default", "environment", "config"])  # fmt: skip
def test_project_and_entity_are_the_configs_or_the_environments(
    given: dict[str, str], variables: dict[str, str], found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EnoughError(Exception):
        pass

    def noted(**settings: Any) -> None:
        seen.append((settings["project"], settings["entity"]))
        raise EnoughError

    seen: list[Any] = []
    for name in ("WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("fgm.training.loggers.StepWandbLogger", noted)
    with pytest.raises(EnoughError):
        wandb_logger(tmp_path, "n", {}, Console(quiet=True), **given)
    assert seen == [found]


# Output that nobody reads


def printing(_: Any) -> None:
    for _ in range(100):
        plain_console().print("x" * 1000)
    print("an error line", file=sys.stderr)


@pytest.mark.parametrize("stream", ["stdout", "stderr", "both"])
def test_output_behind_a_closed_pipe_is_dropped(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        for name in ("stdout", "stderr") if stream == "both" else (stream,):
            monkeypatch.setattr(sys, name, pipe)
        entry(printing, None)
        assert os.readlink(f"/proc/self/fd/{pipe.fileno()}") == os.devnull


@pytest.mark.parametrize("words", ["--help", "nonsense"])
def test_help_and_errors_behind_a_closed_pipe_are_no_traceback(words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fgm.cli.main", words]
    done = subprocess.run(command, stdout=writing, stderr=writing if words != "--help" else subprocess.PIPE)
    os.close(writing)
    assert done.returncode == (0 if words == "--help" else 2) and not done.stderr


# Names


@pytest.mark.parametrize("letter", ["a", "é", "語", "🙂"])
@pytest.mark.parametrize("count", [1, 90, 300])
def test_a_run_name_of_any_letters_fits_a_file_system_and_no_other_run_has_it(
    letter: str, count: int, tmp_path: Path
) -> None:
    runs = [
        (f"mine_{letter * count}{end}", {"data.directory": letter * count + other}) for end in "ab" for other in "cd"
    ]
    names = {run_name(*run) for run in runs}
    assert len(names) == 4 and all(len(name.encode()) <= LONGEST for name in names)
    for name in names:
        (tmp_path / name).mkdir()


def test_names_are_those_of_earlier_runs() -> None:
    assert run_name("digits_fgm", {"method.t_star": 0.9, "seed": 1}) == "digits_fgm__method.t_star-0.9__seed-1"
    name = run_name("digits_fgm", {"data.directory": "/data/" + "d" * 90})
    assert name == "digits_fgm__data.directory--data-" + "d" * (LONGEST - 47) + "__726e979ceb03"


@pytest.mark.parametrize("work", [
    lambda path: require_place(path), lambda path: path.mkdir(), lambda path: read_text(path, "text"),
], ids=["a run's folder", "any folder", "a file"])  # fmt: skip
def test_a_name_that_no_file_system_takes_is_one_line(
    work: Any, tmp_path: Path, capsys: Said, monkeypatch: Any
) -> None:
    line = refused(lambda _: work(tmp_path / ("語" * 90)), [], capsys, monkeypatch)
    assert "File name too long: give a shorter name" in line


# An empty choice


@pytest.mark.parametrize("words", [
    ["experiment="], ["experiment=''"], ["experiment=null"], ["data="], ["-m", "+sweep="],
])  # fmt: skip
def test_an_empty_choice_is_not_the_default(words: list[str], capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """make train EXP= and make sweep without SWEEP=."""
    monkeypatch.setattr(train, "train", lambda config: pytest.fail("trained"))
    assert "chooses nothing: give" in refused(train.main, words, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("word", "line"), [("outputs=", "outputs= is empty"), ("=3", "'=3' is not of the form key=value")]
)
def test_an_empty_folder_or_key_is_one_line(
    word: str, line: str, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "train", lambda config: pytest.fail("trained"))
    assert line in refused(train.main, [word], capsys, monkeypatch)


# Two processes in one run


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
        line = refused(command, [*TINY, f"run_dir={tmp_path / 'run'}"], capsys, monkeypatch)
        assert holds in line and "give run_dir=" in line
    with pytest.raises(UserError, match=holds), locked(tmp_path / "run"):
        pass
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


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
    run = finished(tmp_path, "mixture_fgm", TINY[1:])
    config = compose_experiment("mixture_fgm", run[1:])
    folder = Path(config["run_dir"])
    row = '{"results": [{"weights": "ema", "value": 0.5}]}'
    (folder / "results.json").unlink()
    monkeypatch.setattr(train, "build_module", lambda config: (folder / "results.json").write_text(row))
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


# What is not installed


def missing(name: str) -> Callable[[Any], None]:
    def work(_: Any) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    return work


@pytest.mark.parametrize(("package", "extra"), [
    ("diffusers", "diffusers"), ("torch_fidelity.registry", "metrics"), ("wandb", "wandb"), ("pyarrow.parquet", "parquet"),
])  # fmt: skip
def test_a_missing_package_is_one_line_that_names_the_extra(
    package: str, extra: str, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f'pip install "fgm[{extra}]"' in refused(missing(package), [], capsys, monkeypatch)


def test_a_config_that_needs_a_missing_package_names_its_extra(
    tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    words = ["experiment=shapes_teacher", f"outputs={tmp_path}", "logger=csv"]
    assert 'pip install "fgm[diffusers]"' in refused(train.main, words, capsys, monkeypatch)


def test_a_missing_package_of_ones_own_is_not_taken_for_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(ModuleNotFoundError):
        entry(missing("mine"), None)


@pytest.mark.parametrize("plugin", ["hydra/launcher=joblib", "hydra/launcher=submitit_slurm"])
def test_a_missing_plugin_of_hydra_names_its_extra(plugin: str, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "hydra_plugins.hydra_joblib_launcher" if "joblib" in plugin else "hydra_plugins.hydra_submitit_launcher"
    if importlib.util.find_spec(module):
        pytest.skip("installed")
    assert 'pip install "fgm[' in refused(train.main, ["-m", plugin, "seed=0,1"], capsys, monkeypatch)


def test_an_option_that_needs_a_missing_package_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgm.utils.errors.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'eight_bit needs bitsandbytes, .*pip install "fgm\[eight-bit\]"'):
        require_installed("bitsandbytes", "optimizer.kernel = eight_bit")


def test_no_terminal_is_needed(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    for name, value in (("TERM", ""), ("COLUMNS", "0"), ("LINES", "")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdin", None)
    entry(lambda _: plain_console().print("a line"), None)
    assert capsys.readouterr().out == "a line\n"
