"""A sweep loses nothing: what is done is not run again, what fails is a row, and a kill leaves the same table."""

import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from rich.console import Console

import fgm.build  # here and not in each fork
import fgm.training.dashboard
import fgm.training.weights  # noqa: F401
from fgm.config import digest
from fgm.errors import RESUMABLE, SIGNALS, Refusal
from fgm.evaluation.points import PointPanel
from fgm.records import append_row, read_rows, write_json
from fgm.run_config import write_yaml
from fgm.studies import definition, multirun, running
from fgm.studies import point as of_one
from fgm.studies.definition import Sweep
from fgm.studies.points import Point, points
from fgm.studies.process import Outcome, Processes
from fgm.studies.rows import studies_of
from fgm.studies.table import table_of_study
from fgm.train import diary

TINY = [
    "training.cycles=4", "training.batch_size=8", "training.log_every=2", "training.save_every=1", "evaluation.every=2",
    "evaluation.n=64", "evaluation.n_training=64", "evaluation.batch=64", "method.teacher_steps=2", "network.width=8",
    "method.generator_start=random", "method.online_start=random", "logger=csv",
]  # fmt: skip
SILENT = Console(quiet=True)
Run = Callable[[Processes, dict[str, Any]], Outcome]


@pytest.fixture(autouse=True)
def handlers() -> Any:
    """As they were before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "commit", lambda: "0123456789ab")


def toy(seeds: list[int], recipe: str, *more: str, values: Any = (0.7, 0.9)) -> Sweep:
    axis = definition.read_axis("method.t_star", list(values), "here")
    return Sweep("toy", "?", {"sliced_w2": "min"}, {"method.t_star": axis}, recipe, seeds, list(more))


def points_of(place: Path, seeds: list[int], recipe: str = "mixture_fgm", *more: str, **values: Any) -> list[Point]:
    places = [f"outputs={place}/outputs", f"experiments={place}/experiments"]
    return points(toy(seeds, recipe, *more, **values), recipe, places)


def rows_of(made: list[Point]) -> list[dict[str, Any]]:
    return read_rows(diary(made[0].config))


# runs that are acted


def acted(failing: float = -1.0, metric: str = "sliced_w2", ran: list[str] | None = None) -> Run:
    """What a run leaves behind, without the run; that of one t* fails."""

    def run(processes: Processes, config: dict[str, Any]) -> Outcome:
        del processes
        (ran if ran is not None else []).append(config["run_dir"])
        if config["method"].get("t_star") == failing:
            return Outcome("Diverged: generator: 20 non-finite gradients in a row", False, 1.0)
        result = {"metric": metric, "value": 0.5, "n": 9, "protocol": "acted", "nfe": 1, "weights": "ema"}
        told = {"recipe": config["recipe"], "config_digest": digest(config), "seed": config["seed"], "device": "cpu"}
        row = told | {"train_s": 1.0, "results": [result]} | config.get("study", {})
        append_row(diary(config), row)
        Path(config["run_dir"]).mkdir(parents=True, exist_ok=True)
        write_yaml(config, Path(config["run_dir"]) / "config.yaml")
        write_json(Path(config["run_dir"]) / "results.json", row)
        return Outcome(None, False, 1.0)

    return run


def test_one_failure_is_a_row_and_a_second_call_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, ran = points_of(tmp_path, [0, 1]), []
    monkeypatch.setattr(Processes, "run", acted(failing=0.7, ran=ran))
    for _ in range(2):
        running.run_all(made, False, SILENT)
    assert len(ran) == len(rows_of(made)) == 4
    assert [row.get("failed", "") for row in rows_of(made)] == [
        "Diverged: generator: 20 non-finite gradients in a row",
        "",
    ] * 2
    assert {row["config_digest"] for row in rows_of(made)} == {point.digest for point in made}
    running.run_all(made, True, SILENT)
    assert [Path(run).name[:21] for run in ran[4:]] == ["mixture_fgm__t_star-0"] * 2, "retry is of those that failed"
    (study,) = studies_of(rows_of(made))
    assert [(len(cell.runs), len(cell.failed)) for cell in study.cells] == [(0, 2), (2, 0)]


def test_when_all_points_failed_or_measured_something_else_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = points_of(tmp_path, [0])[:1]
    monkeypatch.setattr(Processes, "run", acted(failing=0.7))
    with pytest.raises(Refusal, match=r"all 1 points of toy failed, the first one: Diverged: .*log.txt.*retry=true"):
        running.run_all(made, False, SILENT)
    monkeypatch.setattr(Processes, "run", acted(metric="energy"))
    with pytest.raises(Refusal, match="does not measure sliced_w2: give metrics=<one of energy>"):
        running.run_all(points_of(tmp_path / "other", [0]), False, SILENT)


def test_a_run_that_an_older_definition_made_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, ran = points_of(tmp_path, [0]), []
    monkeypatch.setattr(Processes, "run", acted(ran=ran))
    running.run_all(made, False, SILENT)
    newer = [Point(p.config | {"study": p.config["study"] | {"sweep_digest": "newer"}}) for p in made]
    known = json.loads((Path(made[0].config["run_dir"]) / "results.json").read_text())
    monkeypatch.setattr(Processes, "run", lambda *_: Outcome(None, False, 0.1))
    running.run_all(newer, False, SILENT)
    assert len(ran) == 2 and [row["sweep_digest"] for row in rows_of(made)[2:]] == ["newer"] * 2
    assert rows_of(made)[2]["results"] == known["results"]


def test_a_teacher_is_trained_once_before_all_points_and_is_no_part_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, ran = points_of(tmp_path, [0, 1], "digits_fgm"), []
    monkeypatch.setattr(Processes, "run", acted(ran=ran))
    running.run_all(made, False, SILENT)
    assert ran[0] == f"{tmp_path}/outputs/digits_teacher" and len(ran) == 5
    assert len(rows_of(made)) == 4 and len(read_rows(tmp_path / "experiments/digits_teacher/runs.jsonl")) == 1
    monkeypatch.setattr(Processes, "run", lambda *_: Outcome("error: disk", False, 1.0))
    with pytest.raises(Refusal, match=r"the teacher failed: error: disk \(.*digits_teacher/log.txt\)"):
        running.run_all(points_of(tmp_path / "other", [0], "digits_fgm"), False, SILENT)


# through Hydra


class Chooser(Sweeper):
    """What is ours of Optuna's part: a trial is a value of each axis, comes to one number, and no nan is taken."""

    __module__ = "hydra_plugins.stand_in"

    def __init__(self, direction: str) -> None:
        self.direction, self.values = direction, list[float]()

    def setup(self, **given: Any) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(**given)

    def sweep(self, arguments: list[str]) -> None:
        axes = [OverridesParser.create().parse_override(argument) for argument in arguments]
        for trial in zip(*(axis.sweep_string_iterator() for axis in axes), strict=True):
            chosen = [f"{axis.get_key_element()}={value}" for axis, value in zip(axes, trial, strict=True)]
            (found,) = self.launcher.launch([chosen], len(self.values))
            self.values.append(float(found.return_value))
        assert self.direction == "minimize" and not any(map(math.isnan, self.values))
        print("told", self.values)


@pytest.fixture
def optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chooser under its name."""
    package, module = ModuleType("hydra_plugins"), ModuleType(Chooser.__module__)
    package.__path__, package.stand_in, module.Chooser = [], module, Chooser  # type: ignore[attr-defined]
    for found in (package, module):
        monkeypatch.setitem(sys.modules, found.__name__, found)
    Plugins.instance().register(Chooser)
    node = {"_target_": f"{Chooser.__module__}.Chooser", "direction": "?"}
    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=node)
    monkeypatch.setattr(multirun, "installed", lambda package: True)


def multirun_of(sweep: Sweep, place: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, **own: str) -> None:
    monkeypatch.setattr(multirun, "read_sweep", lambda name: {"toy": sweep}[name])
    monkeypatch.setattr(sys, "argv", ["fgm.sweep"])
    for name in (multirun.JOB, "HYDRA_FULL_ERROR"):
        monkeypatch.setenv(name, "")
    places = [f"outputs={place}/outputs", f"experiments={place}/experiments"]
    own = {"launcher": "", "sweeper": "", "metrics": "", "retry": "false"} | own
    multirun.multirun(sweep, "mixture_fgm", places, own, [*arguments], SILENT)


def test_a_sweeper_that_chooses_is_told_means_over_seeds_and_a_failure_is_the_worst_value(
    optuna: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Processes, "run", acted(failing=0.7))
    multirun_of(toy([0, 1], "mixture_fgm"), tmp_path, monkeypatch, sweeper="optuna")
    rows = read_rows(tmp_path / "experiments" / "toy" / "runs.jsonl")
    assert [(row["swept"]["method.t_star"], row["seed"], "failed" in row) for row in rows] == [
        (0.7, 0, True), (0.7, 1, True), (0.9, 0, False), (0.9, 1, False),
    ]  # fmt: skip
    said = capfd.readouterr().out
    assert "told [inf, 0.5]" in said and "t_star 0.9, seed 1: sliced_w2 0.5" in said and "failed, Diverged" in said


def test_launchers_run_again_what_failed_only_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(Processes, "run", acted(failing=0.7, ran=ran))
    for retry, count in {"false": 2, "true": 3}.items():
        multirun_of(toy([0], "mixture_fgm"), tmp_path, monkeypatch, launcher="basic", retry=retry)
        assert len(ran) == count


REFUSED = {
    r"all 1 points of toy failed, the first one: Diverged: .*retry=true": (acted(failing=0.7), []),
    r"does not measure sliced_w2: give metrics=<one of energy>": (acted(metric="energy"), []),
    r"Could not override 'hydra.launcher.job'": (acted(), ["hydra.launcher.job=2"]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_launchers_refuse_in_one_line(message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acts, arguments = REFUSED[message]
    monkeypatch.setattr(Processes, "run", acts)
    with pytest.raises(Refusal, match=message):
        multirun_of(toy([0], "mixture_fgm", values=[0.7]), tmp_path, monkeypatch, *arguments, launcher="basic")


def test_a_plugin_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multirun, "installed", lambda package: package == "hydra")
    with pytest.raises(Refusal, match=r"joblib is not installed: pip install -e '.\[joblib\]'"):
        multirun_of(toy([0], "mixture_fgm"), tmp_path, monkeypatch, launcher="joblib")


# processes

SAYS = {
    "print('fine')": None,
    "print('warning: x'); raise FloatingPointError('no')": "FloatingPointError: no",
    "import sys; print('error: give y', file=sys.stderr); sys.exit(2)": "error: give y",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": "killed by SIGKILL",
    "import sys; sys.exit(3)": "exit code 3",
}


@pytest.mark.parametrize("code, failed", SAYS.items())
def test_what_became_of_a_process(code: str, failed: str | None, tmp_path: Path) -> None:
    processes = Processes(sys.executable, "-c", code)
    for _ in range(2):
        assert processes.run({"run_dir": str(tmp_path / "run")}).failed == failed


def test_a_signal_is_handed_on_and_the_run_may_finish_its_cycle(tmp_path: Path) -> None:
    code = f"import signal, sys, time; signal.signal(15, lambda *_: sys.exit({RESUMABLE})); print('up', flush=True)"
    code += "; time.sleep(60)"
    processes, log = Processes(sys.executable, "-c", code), tmp_path / "log.txt"

    def when_up() -> None:
        while not (log.exists() and log.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=when_up).start()
    outcome = processes.run({"run_dir": str(tmp_path)})
    assert outcome.stopped and outcome.failed is None and outcome.seconds < 30
    with pytest.raises(SystemExit) as stop:
        running.stop_if_asked(outcome)
    assert stop.value.code == RESUMABLE


def test_a_run_stops_when_the_process_that_started_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    (read, write), sent, standard = os.pipe(), [], os.dup(0)
    os.dup2(read, 0)
    try:
        monkeypatch.setattr(of_one.os, "kill", lambda *told: sent.append(told))
        waiting = threading.Thread(target=of_one.stop_with_parent)
        waiting.start()
        assert waiting.is_alive() and not sent
        os.close(write)
        waiting.join(10)
        assert sent == [(os.getpid(), signal.SIGTERM)]
    finally:
        os.dup2(standard, 0)


# the whole, killed


def forked(processes: Processes, command: list[str], log: Any) -> int:
    """code_of, without the seconds that an interpreter of its own takes to import torch."""
    del processes, log
    child = multiprocessing.get_context("fork").Process(target=of_one.main, args=([command[-2]],))
    child.start()
    child.join()
    return child.exitcode or 0


def in_process(made: list[Point]) -> Any:
    def work() -> None:
        torch.set_num_threads(1)
        running.run_all(made, False, SILENT)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def values(made: list[Point]) -> list[str]:
    """The table without its column of seconds."""
    return [line.rpartition(" | ")[0] or line for line in table_of_study(rows_of(made))]


def test_killed_half_way_and_started_again_it_gives_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "code_of", forked)
    monkeypatch.setattr(PointPanel, "bounds", lambda panel: [])  # seconds a run
    three = (0.5, 0.7, 0.9)
    whole, cut = (points_of(tmp_path / name, [3], "mixture_fgm", *TINY, values=three) for name in ("whole", "cut"))
    undisturbed = in_process(whole)
    undisturbed.join()
    assert undisturbed.exitcode == 0 and len(rows_of(whole)) == 3
    killed = in_process(cut)
    while len(rows_of(cut)) < 1:
        assert killed.is_alive()
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert len(rows_of(cut)) < 3
    again = in_process(cut)
    again.join()
    assert again.exitcode == 0 and len(rows_of(cut)) == 3, "each point has one row"
    assert values(cut) == values(whole) and len(values(whole)) > 6
    assert all(len(row["curves"]["eval/sliced_w2"]) == 2 for row in rows_of(cut))
    assert not list(tmp_path.glob("cut/outputs/toy/*/checkpoints"))
    assert len(list(tmp_path.glob("cut/outputs/toy/*/samples/drawn.png"))) == 3
