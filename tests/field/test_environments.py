"""Where commands run: without a home, in an allocation, behind a closed pipe, under odd names, without an extra."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Said, refused
from toy_trainings import distillation, last_step, on_cpu, place

from fgm.cli import train
from fgm.cli.config import LONGEST, run_name
from fgm.training.trainer import count_devices, fit
from fgm.utils.distributed import PLACES, SIZES, leave_job, ranks_of_environment
from fgm.utils.errors import UserError, entry, rank, require_installed
from fgm.utils.files import read_text, require_place
from fgm.utils.printing import plain_console

pytestmark = pytest.mark.field
TINY = [
    "experiment=mixture_fgm", "training.max_steps=2", "training.batch_size=8", "evaluation.every=0", "evaluation.n=64",
    "evaluation.n_in_training=64", "method.teacher_steps=2", "network.width=8", "network.depth=1",
    "method.generator_init=random", "method.online_init=random", "method.ode_pairs=0",
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
