"""A sweep through Hydra's multirun, for what Hydra has and fgm.cli.sweep's own loop has not: launchers and sweepers.

    launcher=joblib                      points side by side on this machine
    launcher=submitit_slurm              points as SLURM jobs; hydra.launcher.partition=... and the like
    sweeper=optuna                       points chosen by Optuna among the axes' values; hydra.sweeper.n_trials=20
                                         a trial is a point with all its seeds, and its value their mean

Hydra composes nothing here: a job hands its overrides, axis by axis, to the same code as the loop, one point in a
process of its own. So points that are done are not run again, and a point that fails is a row, here too. To a sweeper
its value is the worst there is: Optuna takes no nan.
"""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from rich.console import Console

from fgm.analysis.sweeps import value_of
from fgm.cli.studies.definition import Sweep, read_sweep, restrict, text, with_metrics
from fgm.cli.studies.points import Point, points
from fgm.cli.studies.process import Processes
from fgm.cli.studies.running import conclude, finished, known_rows, run_point, said, train_teachers
from fgm.utils.errors import UserError, first_line, require_installed

LAUNCHERS, SWEEPERS = ("basic", "joblib", "submitit_local", "submitit_slurm"), ("basic", "optuna")
SUBMITIT = ("hydra_plugins.hydra_submitit_launcher", "slurm")
PLUGINS = {  # package, and our extra that holds it
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"), "submitit_local": SUBMITIT,
    "submitit_slurm": SUBMITIT, "optuna": ("hydra_plugins.hydra_optuna_sweeper", "optuna"),
}  # fmt: skip
JOB = "FGM_SWEEP_JOB"  # what all jobs share, in the environment that launchers hand on
SEPARATOR = "\n"


def multirun(
    sweep: Sweep, recipe: str, overrides: list[str], own: dict[str, str], arguments: list[str], console: Console
) -> None:
    """
    Args:
        own: the command's settings launcher, sweeper, metrics and retry.
        arguments: hydra.<key>=<value>.

    Raises:
        UserError: the plugin that is asked for is not installed, Hydra has no such setting, or all points failed.
    """
    launcher, sweeper = own["launcher"] or "basic", own["sweeper"] or "basic"
    for key, name in (("launcher", launcher), ("sweeper", sweeper)):
        if name in PLUGINS:
            package, extra = PLUGINS[name]
            require_installed(package, f"{key} = {name}", extra)
    made = points(sweep, recipe, overrides)
    train_teachers(made, Processes(), console)
    seeds = ",".join(map(str, sweep.seeds))
    os.environ[JOB] = SEPARATOR.join([sweep.name, own["metrics"], own["retry"], seeds, recipe, *overrides])
    settings = [*hydra_settings(sweep, launcher, sweeper, made[0].config["outputs"]), *arguments]
    with_hydra([*grid(sweep, sweeper), *settings])
    conclude(made, known_rows(made), console)


def with_hydra(arguments: list[str]) -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # an error is raised, not told in Hydra's own way
    sys.argv = [sys.argv[0], "--multirun", *arguments]
    try:
        hydra.main(version_base=None, config_path=None)(job)()
    except HydraException as error:
        raise UserError(first_line(error)) from error


def grid(sweep: Sweep, sweeper: str) -> list[str]:
    """As Hydra's sweep overrides of a config that is empty; a sweeper that chooses is not to choose seeds."""
    axes = {axis.name: [text(value) for value in axis.values] for axis in sweep.axes.values()}
    seeds = {"seed": [str(seed) for seed in sweep.seeds]} if sweeper == "basic" else {}
    return [f"+{name}={','.join(values)}" for name, values in (axes | seeds).items()]


def hydra_settings(sweep: Sweep, launcher: str, sweeper: str, outputs: str) -> list[str]:
    places = [f"hydra.sweep.dir={outputs}/{sweep.name}/multirun", "hydra.output_subdir=null", "hydra/job_logging=none"]
    chosen = [f"hydra/launcher={launcher}", f"hydra/sweeper={sweeper}"]
    return [*places, *chosen, *([f"hydra.sweeper.direction={sweep.mode}imize"] if sweeper == "optuna" else [])]


def job(config: Any) -> float:
    """One point, or one with all seeds; the mean of the values that decide."""
    del config
    name, metrics, retry, seeds, recipe, *overrides = os.environ[JOB].split(SEPARATOR)
    chosen = [override.removeprefix("+") for override in HydraConfig.get().overrides.task]
    sweep, rest = restrict(with_metrics(read_sweep(name), metrics), [f"seed={seeds}", *overrides, *chosen])
    with without_hydra():
        made = points(sweep, recipe, rest)
    return fmean([value_for_sweeper(point, run(point, retry == "true"), sweep.mode) for point in made])


@contextmanager
def without_hydra() -> Iterator[None]:
    """Hydra composes one config at a time, and a job of its own is one."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().hydra = outer


def run(point: Point, retry: bool) -> dict[str, Any]:
    """Its row, which is there already where it is done."""
    rows = known_rows([point])
    row = rows[point.digest] if finished(point, rows, retry) else run_point(point, Processes())[0]
    print(f"{point.label}: {said(point, row)}", flush=True)
    return row


def value_for_sweeper(point: Point, row: dict[str, Any], mode: str) -> float:
    value = value_of(row, point.metric)
    worst = math.inf if mode == "min" else -math.inf
    return value if value is not None and math.isfinite(value) else worst
