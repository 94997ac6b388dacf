"""Studies: configs/sweep/<name>.yaml, a Hydra multirun whose points are recorded together.

    python -m fgm.cli.train -m +sweep=t_star                           the grid of hydra.sweeper.params, seed by seed
    python -m fgm.cli.train -m +sweep=t_star method.t_star=0.9 seed=0  a part of it
    ... experiment=fashion_fgm training.max_steps=50 experiments=trial   any other value, for all points
    ... hydra/launcher=joblib                                          points side by side, or SLURM jobs (submitit_slurm)
    ... hydra/sweeper=optuna method.t_star='interval(0.5,1.0)' seed=0  points chosen by Optuna

A finished point is not run again. A point that fails is a row that says why, and the sweep continues. W&B's agents run
the same points, from a file that this command prints:

    python -m fgm.cli.sweep t_star [--method bayes] [key=value ...] > sweep.yaml; wandb sweep sweep.yaml; wandb agent <id>
"""

import argparse
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from fgm.analysis.sweeps import value_of
from fgm.cli import runs
from fgm.cli.config import CONFIGS, composed, digest
from fgm.training.loggers import PROJECT, final
from fgm.training.module import DivergenceError
from fgm.utils.errors import UserError, entry, first_line, hint
from fgm.utils.records import append_row

SWEEP_KEYS = ("seed", "sweep")  # of a point's overrides, besides the axes


@dataclass(frozen=True)
class SweepConfig:
    """The `study` node of configs/sweep/<name>.yaml, and its grid.

    Attributes:
        metrics: metric -> min or max; the first one decides.
        units: axis -> its unit, for plots.
        axes: key of hydra.sweeper.params, without seed -> its values.
        seeds: of every point.
    """

    name: str
    question: str
    metrics: dict[str, str]
    axes: dict[str, list[Any]]
    seeds: list[int]
    units: dict[str, str] = field(default_factory=dict)


def sweeps() -> list[str]:
    return sorted(path.stem for path in (CONFIGS / "sweep").glob("*.yaml"))


def read_sweep(name: str) -> SweepConfig:
    """
    Raises:
        UserError: there is no such sweep.
    """
    if name not in sweeps():
        raise UserError(f"sweep = {name}: unknown; {hint(name, sweeps())}")
    node: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "sweep" / f"{name}.yaml"))
    axes = {key: values_of(key, text) for key, text in node["hydra"]["sweeper"]["params"].items()}
    known = {key: node["study"][key] for key in ("question", "metrics", "units") if key in node["study"]}
    return SweepConfig(name=name, axes=axes, seeds=axes.pop("seed"), **known)


def values_of(key: str, text: Any) -> list[Any]:
    """Return the values of `key: 0.5,0.7` as Hydra reads them."""
    parser = OverridesParser.create()
    override = parser.parse_override(f"{key}={text}")
    words = list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(text)]
    return [parser.parse_override(f"{key}={word}").value() for word in words]


def run_point(config: dict[str, Any], train: Callable[[dict[str, Any]], Any]) -> float:
    """Run one point unless it is done, record it with its study, and return the metric that decides.

    In a multirun a run that fails becomes a row without results, and its metric is the worst there is: Optuna takes no
    nan. The runs of a finished point are recorded once.

    Raises:
        UserError: the user's mistake, which all points share; outside a multirun, whatever the training raises.
    """
    config, began, value = config | {"study": study_record(config)}, time.perf_counter(), None
    metric, mode = next(iter(config["study"]["metrics"].items()))
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        train(config)
        value = value_of(runs.recorded_row(config), metric)
    except Exception as error:
        if not multirun or (isinstance(error, UserError) and not isinstance(error, DivergenceError)):
            raise
        record_failure(config, error, time.perf_counter() - began)
    shutil.rmtree(Path(config["run_dir"]) / "checkpoints", ignore_errors=True)  # a finished run's weights are exported
    return value if value is not None and math.isfinite(value) else math.inf if mode == "min" else -math.inf


def record_failure(config: dict[str, Any], error: Exception, seconds: float) -> None:
    failed = f"{type(error).__name__}: {first_line(error)}"
    print(f"{config['run_dir']}: failed, {failed}", file=sys.stderr, flush=True)
    outcome = {"wall_s": round(seconds, 1)} | config["study"] | {"failed": failed, "results": []}
    append_row(runs.runs_file(config), runs.origin(config) | outcome)


def study_record(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a point's row says of its study; sweep_digest identifies the config that all points share."""
    hydra, node = HydraConfig.get(), config["study"]
    axes = [key for key in (hydra.sweeper.get("params") or {}) if key not in SWEEP_KEYS]
    swept = {}
    for axis in axes:
        value: Any = hydra.runtime.choices.get(axis)
        if value is None:
            value = config
            for key in axis.lstrip("+").split("."):
                value = value[key]
        swept[axis.lstrip("+").removeprefix("study.")] = value
    shared = [o for o in hydra.overrides.task if o.partition("=")[0] not in (*axes, "seed")]
    base: Any = OmegaConf.to_container(composed(config["experiment"], shared), resolve=True)
    return {
        "study": node["name"], "metrics": node["metrics"], "sweep_digest": digest(base | {"experiment": config["experiment"], "seed": None}), "swept": swept,
    }  # fmt: skip


def wandb_sweep(study: SweepConfig, method: str, overrides: list[str]) -> dict[str, Any]:
    """Return a study as W&B's sweep file; with bayes, numeric axes are ranges.

    An agent fills ${args_no_hyphens} with <axis>=<value> seed=<seed>.
    """
    axes: dict[str, Any] = {axis: {"values": values} for axis, values in study.axes.items()}
    if method == "bayes":
        numeric = {k: v for k, v in study.axes.items() if all(type(x) in (int, float) for x in v)}
        axes |= {axis: {"min": min(values), "max": max(values)} for axis, values in numeric.items()}
    metric, mode = next(iter(study.metrics.items()))
    return {
        "name": study.name, "description": study.question, "project": PROJECT, "method": method,
        "metric": {"name": final(metric), "goal": f"{mode}imize"},
        "parameters": axes | {"seed": {"values": study.seeds}},
        "command": [
            "${env}", "${interpreter}", "-m", "fgm.cli.train", f"+sweep={study.name}", *overrides, "${args_no_hyphens}",
        ],
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m fgm.cli.sweep", description="Print a study as W&B's sweep file.")
    parser.add_argument("study", help=", ".join(sweeps()))
    parser.add_argument("--method", choices=("grid", "random", "bayes"), default="grid")
    parser.add_argument("overrides", nargs="*", help="key=value, for all points")
    given = parser.parse_intermixed_args(arguments)
    sys.stdout.write(
        yaml.safe_dump(wandb_sweep(read_sweep(given.study), given.method, given.overrides), sort_keys=False)
    )


if __name__ == "__main__":
    entry(main, None)
