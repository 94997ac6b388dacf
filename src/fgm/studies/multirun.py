"""A sweep through Hydra's multirun, for what Hydra has and fgm.sweep's own loop has not: launchers and sweepers.

    launcher=joblib                      points side by side on this machine
    launcher=submitit_slurm              points as SLURM jobs; hydra.launcher.partition=... and the like
    sweeper=optuna                       points chosen by Optuna among the axes' values; hydra.sweeper.n_trials=20
                                         a trial is a point with all its seeds, and its value their mean

Hydra composes nothing here: a job hands its overrides, axis by axis, to the same code as the loop, one point in a
process of its own. So points that are done are not run again, and a point that fails is a row, here too.
"""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from statistics import fmean
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from fgm.config import read_recipe
from fgm.errors import Refusal
from fgm.studies.definition import Sweep, read_sweep, restrict, text, with_metrics
from fgm.studies.points import Point, points
from fgm.studies.process import Processes
from fgm.studies.rows import value_of
from fgm.studies.running import finished, known_rows, record, stop_if_asked, train_teachers

LAUNCHERS = {
    "basic": "hydra",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
}
SWEEPERS = {"basic": "hydra", "optuna": "hydra_plugins.hydra_optuna_sweeper"}
EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "optuna": "optuna"}
JOB = "FGM_SWEEP_JOB"  # what all jobs share, in the environment that launchers hand on
SEPARATOR = "\n"


def multirun(sweep: Sweep, recipe: str, overrides: list[str], own: dict[str, str], arguments: list[str]) -> None:
    """
    Raises:
        Refusal: the plugin that is asked for is not installed.
    """
    launcher, sweeper = own["launcher"] or "basic", own["sweeper"] or "basic"
    for name, package in ((launcher, LAUNCHERS[launcher]), (sweeper, SWEEPERS[sweeper])):
        if not installed(package):
            raise Refusal(f"{name} is not installed: pip install -e '.[{EXTRAS[name]}]'")
    train_teachers(points(sweep, recipe, overrides), Processes(), Console(highlight=False, soft_wrap=True))
    seeds = ",".join(map(str, sweep.seeds))
    os.environ[JOB] = SEPARATOR.join([sweep.name, own["metrics"], seeds, recipe, *overrides])
    outputs = read_recipe(recipe, overrides)["outputs"]
    sys.argv = [
        sys.argv[0],
        "--multirun",
        *grid(sweep, sweeper),
        *hydra_settings(sweep, launcher, sweeper, outputs),
        *arguments,
    ]
    hydra.main(version_base=None, config_path=None)(job)()


def installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def grid(sweep: Sweep, sweeper: str) -> list[str]:
    """As Hydra's sweep overrides of a config that is empty; a sweeper that chooses is not to choose seeds."""
    axes = {axis.name: [text(value) for value in axis.values] for axis in sweep.axes.values()}
    seeds = {"seed": [str(seed) for seed in sweep.seeds]} if sweeper == "basic" else {}
    return [f"+{name}={','.join(values)}" for name, values in (axes | seeds).items()]


def hydra_settings(sweep: Sweep, launcher: str, sweeper: str, outputs: str) -> list[str]:
    places = [f"hydra.sweep.dir={outputs}/{sweep.name}/multirun", "hydra.output_subdir=null", "hydra/job_logging=none"]
    chosen = [f"hydra/launcher={launcher}", f"hydra/sweeper={sweeper}"]
    optuna = [f"hydra.sweeper.direction={sweep.mode}imize", "hydra.sweeper.max_failure_rate=1.0"]
    return [*places, *chosen, *(optuna if sweeper == "optuna" else [])]


def job(config: Any) -> float:
    """One point, or one with all seeds; the mean of the values that decide, or nan where a run failed."""
    del config
    name, metrics, seeds, recipe, *overrides = os.environ[JOB].split(SEPARATOR)
    chosen = [override.removeprefix("+") for override in HydraConfig.get().overrides.task]
    sweep, rest = restrict(with_metrics(read_sweep(name), metrics), [f"seed={seeds}", *overrides, *chosen])
    with without_hydra():
        made = points(sweep, recipe, rest)
    return fmean([run(point) for point in made])


@contextmanager
def without_hydra() -> Iterator[None]:
    """Hydra composes one config at a time, and a job of its own is one."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().hydra = outer


def run(point: Point) -> float:
    rows = known_rows([point])
    if not finished(point, rows):
        outcome = Processes().run(point.config)
        stop_if_asked(outcome)
        rows[point.digest] = record(point, outcome)
    value = value_of(rows[point.digest], next(iter(point.config["study"]["metrics"])))
    return math.nan if value is None else value
