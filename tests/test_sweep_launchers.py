"""A sweep through Hydra's launchers and sweepers: what they are told, what is run again, what is refused."""

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from toy_sweeps import SILENT, acted, committed, toy  # noqa: F401

from fgm.cli.studies import multirun
from fgm.cli.studies.definition import Sweep
from fgm.cli.studies.process import Processes
from fgm.utils.errors import UserError
from fgm.utils.records import read_rows


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
    monkeypatch.setattr(multirun, "require_installed", lambda *_: None)


def multirun_of(sweep: Sweep, place: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, **own: str) -> None:
    monkeypatch.setattr(multirun, "read_sweep", lambda name: {"toy": sweep}[name])
    monkeypatch.setattr(sys, "argv", ["fgm.cli.sweep"])
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
    assert (
        "told [inf, 0.5]" in said and "t_star 0.9, seed 1: sliced_w2 0.5" in said and "failed, DivergenceError" in said
    )


def test_launchers_run_again_what_failed_only_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(Processes, "run", acted(failing=0.7, ran=ran))
    for retry, count in {"false": 2, "true": 3}.items():
        multirun_of(toy([0], "mixture_fgm"), tmp_path, monkeypatch, launcher="basic", retry=retry)
        assert len(ran) == count


REFUSED = {
    r"all 1 points of toy failed, the first one: DivergenceError: .*retry=true": (acted(failing=0.7), []),
    r"does not measure sliced_w2: give metrics=<one of energy>": (acted(metric="energy"), []),
    r"Could not override 'hydra.launcher.job'": (acted(), ["hydra.launcher.job=2"]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_launchers_refuse_in_one_line(message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acts, arguments = REFUSED[message]
    monkeypatch.setattr(Processes, "run", acts)
    with pytest.raises(UserError, match=message):
        multirun_of(toy([0], "mixture_fgm", values=[0.7]), tmp_path, monkeypatch, *arguments, launcher="basic")


def test_a_plugin_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multirun.PLUGINS, "joblib", ("hydra_plugins_of_nobody.launcher", "joblib"))
    with pytest.raises(UserError, match=r"^launcher = joblib needs .*, which is not installed: pip .* '\.\[joblib\]'$"):
        multirun_of(toy([0], "mixture_fgm"), tmp_path, monkeypatch, launcher="joblib")
