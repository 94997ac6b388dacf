"""A sweep's file is the one source: its grid, W&B's grid and Hydra's are the same points."""

import importlib.util
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from rich.console import Console
from tiny_runs import light

from fgm.cli import sweep as command
from fgm.cli.config import CONFIGS, read_recipe
from fgm.cli.studies import definition, multirun
from fgm.cli.studies.definition import Sweep, read_sweep, restrict, sweeps, with_metrics
from fgm.cli.studies.points import Point, combinations, points
from fgm.cli.studies.wandb_sweep import sweep_config, write_sweep
from fgm.utils.errors import UserError

BAD = {
    "unknown sweep": (["sweep=t_sta"], "did you mean t_star?"),
    "no sweep": (["sweep="], "sweep= is missing; there are ema, "),
    "no such parameter": (["sweep=t_star", "experiment=digits_teacher"], "axis method.t_star: there is no setting"),
    "out of range": (["sweep=t_star", "method.t_star=1.5"], "method.t_star = 1.5: must lie in (0, 1]"),
    "no such named value": (["sweep=objective", "turns=K2"], "turns = K2: unknown; did you mean K"),
    "mistyped setting": (["sweep=t_star", "training.cyclez=4"], "did you mean training.max_steps?"),
    "no such seed": (["sweep=t_star", "seed=first"], "seed = first must be a whole number from 0"),
    "no such mode": (["sweep=t_star", "metrics=fd:least"], "say fd:min or fd:max"),
    "a launcher for agents": (
        ["sweep=t_star", "format=wandb", "launcher=joblib"],
        "format=wandb leaves the points to its agents",
    ),
    "a file of no format": (["sweep=t_star", "out=x.yaml"], "out=x.yaml is for format=wandb"),
    "a file for a folder": (["sweep=t_star", "experiments=README.md"], "README.md is a file, and a folder is needed"),
    "no such launcher": (["sweep=t_star", "launcher=jobli"], "launcher = jobli: unknown; did you mean joblib?"),
}


def digests(made: list[Point]) -> set[str]:
    return {point.digest for point in made}


def small(**changes: Any) -> Sweep:
    axes = {"method.t_star": [0.7, 1.0], "loss": {"fgm": ["method=fgm"], "sid": ["method=sid"]}}
    node = {"question": "?", "metrics": {"fd": "min"}, "seeds": [0, 3], "base": ["training.max_steps=7"]} | changes
    read = {name: definition.read_axis(name, values, "here") for name, values in axes.items()}
    return Sweep(**({"name": "small", "axes": read} | node))


@pytest.mark.parametrize("arguments, message", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_before_torch(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in light("sweep", [*arguments, f"outputs={tmp_path}"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sweeps())
def test_every_value_of_every_sweep_composes_and_differs_from_the_others(name: str) -> None:
    sweep = read_sweep(name)
    header = (CONFIGS / "sweep" / f"{name}.yaml").read_text().splitlines()
    assert header[0] == f"# make sweep SWEEP={name}" and any("Cost" in line for line in header[:4])
    assert len(sweep.seeds) >= 3 and sweep.question.endswith("?")
    first = {axis.name: axis.restricted(str(next(iter(axis.values)))) for axis in sweep.axes.values()}
    for axis in sweep.axes.values():
        line = Sweep(**(vars(sweep) | {"axes": first | {axis.name: axis}, "seeds": [0]}))
        made = points(line, sweep.experiment, [])
        assert len(digests(made)) == len(axis.values) == len({point.config["run_dir"] for point in made})


def test_a_point_is_the_recipe_with_its_values_and_says_so() -> None:
    made = points(small(), "digits_fgm", ["optimizer.lr=0.1"])
    assert len(made) == len(digests(made)) == 8
    assert [p.config["seed"] for p in made] == [0] * 4 + [3] * 4, "whole grids first"
    alone = read_recipe(
        "digits_fgm", ["training.max_steps=7", "optimizer.lr=0.1", "method.t_star=1.0", "method=sid", "seed=3"]
    )
    assert made[-1].digest == Point(alone).digest, "a study's point is no other run than the same values without it"
    assert made[-1].swept == {"method.t_star": 1.0, "loss": "sid"}
    assert made[-1].label == "t_star 1.0, loss sid, seed 3"
    assert made[-1].config["run_dir"].startswith("outputs/small/digits_fgm__t_star-1.0__loss-sid__seed-3__")


def test_a_trained_teacher_shares_what_it_must_and_an_exact_one_follows_by_itself() -> None:
    axis = definition.read_axis("schedule", {"cosine": ["path=trigonometric", "method.t_star=0.6"]}, "here")
    sweep = small(axes={"schedule": axis}, with_teacher=["path"])
    (point, _) = points(sweep, "digits_fgm", ['teacher.overrides=["seed=5"]'])
    assert point.config["teacher"]["overrides"] == ["seed=5", "path=trigonometric"]
    (point, _) = points(sweep, "mixture_fgm", [])
    assert point.config["teacher"]["path"] == point.config["path"] == {"_target_": "fgm.flow.paths.TrigonometricPath"}


def test_the_two_turns_have_densities_of_their_own() -> None:
    for name, own, other in (
        ("timestep_density", "generator", "online"),
        ("timestep_density_online", "online", "generator"),
    ):
        sweep, _ = restrict(read_sweep(name), [f"{own}=mode,mean_0.8", "seed=0"])
        told = [
            {"generator": p.config["time"], "online": p.config["method"]["online_time"]}
            for p in points(sweep, "digits_fgm", [])
        ]
        assert told[0][own]["_target_"] == "fgm.flow.times.Mode" and told[1][own]["mean"] == 0.8
        assert [t[other] for t in told] == [{"_target_": "fgm.flow.times.LogitNormal", "mean": 0.0, "std": 1.0}] * 2


def test_a_part_of_a_sweep_is_named_by_its_axes_and_may_lie_off_the_grid() -> None:
    part, rest = restrict(small(), ["method.t_star=1,0.35", "loss=sid", "seed=4", "optimizer.lr=1"])
    assert rest == ["optimizer.lr=1"] and part.seeds == [4]
    assert [type(v) for v in part.axes["method.t_star"].values] == [float, float], "1 is the grid's 1.0"
    assert [s for s, _ in combinations(part)] == [{"method.t_star": t, "loss": "sid"} for t in (1.0, 0.35)]
    whole, inside = points(small(seeds=[4]), "digits_fgm", []), points(part, "digits_fgm", [])
    assert inside[0].digest in digests(whole) and inside[1].digest not in digests(whole)
    assert with_metrics(small(), "kid:min,recall:max").metrics == {"kid": "min", "recall": "max"}


def test_a_value_is_read_as_hydra_reads_it() -> None:
    axis = definition.read_axis("optimizer.lr", [1e-5, 0.1, True, None], "here")
    for given, values in {"1e-5,1e-05": [1e-5], "0.10": [0.1], "True,true": [True], "None,null": [None]}.items():
        assert list(axis.restricted(given).values) == values, "a value of the grid, however it is written"
    (new,) = axis.restricted("3e-4").values.items()
    assert new == (3e-4, ["optimizer.lr=0.0003"])
    for wrong in ("[1", "{a: 1}", "choice(1)"):
        with pytest.raises(UserError, match=r"optimizer\.lr = "):
            axis.restricted(wrong)


# W&B


def schema() -> dict[str, Any]:
    """W&B's own, of the package `sweeps`; read as a file."""
    spec = importlib.util.find_spec("sweeps")
    assert spec and spec.origin, "pip install sweeps, W&B's sweep engine, whose schema is asked for here"
    return json.loads((Path(spec.origin).parent / "config" / "schema.json").read_text())


@pytest.mark.parametrize("name", sweeps())
def test_the_yaml_for_wandb_fits_its_schema(name: str, tmp_path: Path) -> None:
    sweep = read_sweep(name)
    path = tmp_path / "wandb.yaml"
    write_sweep(sweep, sweep.experiment, [], False, str(path))
    Draft7Validator(schema()).validate(yaml.safe_load(path.read_text()))
    broken = yaml.safe_load(path.read_text()) | {"method": "grid search"}
    assert list(Draft7Validator(schema()).iter_errors(broken))


def test_what_an_agent_runs_are_the_same_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of W&B's grid, as its agent writes a command line, comes to be one point of ours."""
    sweep, ran, retried = small(), [], []
    monkeypatch.setattr(command, "read_sweep", lambda name: {"small": sweep}[name])
    monkeypatch.setattr(command, "run_all", lambda made, retry, console: (ran.extend(made), retried.append(retry)))
    written = sweep_config(sweep, "digits_fgm", ["optimizer.lr=0.1"], retry=True)
    names, values = zip(*((n, p["values"]) for n, p in written["parameters"].items()), strict=True)
    for chosen in product(*values):
        arguments = [f"{name}={value}" for name, value in zip(names, chosen, strict=True)]
        fixed = written["command"][written["command"].index("fgm.cli.sweep") + 1 : -1]
        command.main([*fixed, *arguments])
    assert digests(ran) == digests(points(sweep, "digits_fgm", ["optimizer.lr=0.1"]))
    assert len(ran) == 8 and all(retried) and written["metric"] == {"name": "final/fd", "goal": "minimize"}


# Hydra


def test_hydras_multirun_runs_the_same_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, ran = small(), []
    monkeypatch.setattr(multirun, "read_sweep", lambda name: {"small": sweep}[name])
    monkeypatch.setattr(multirun, "train_teachers", lambda *_: None)
    monkeypatch.setattr(multirun, "run", lambda point, retry: ran.append(point) or {"results": []})
    monkeypatch.setattr(sys, "argv", ["fgm.cli.sweep"])
    for name in (multirun.JOB, "HYDRA_FULL_ERROR"):
        monkeypatch.setenv(name, "")
    own = {"launcher": "basic", "sweeper": "", "metrics": "", "retry": "false"}
    sweep, _ = restrict(sweep, ["loss=sid", "seed=3"])
    multirun.multirun(sweep, "digits_fgm", [f"outputs={tmp_path}"], own, [], Console(quiet=True))
    assert len(ran) == 2 and digests(ran) == digests(points(sweep, "digits_fgm", []))
    chosen = multirun.grid(sweep, "optuna")
    assert chosen == ["+method.t_star=0.7,1.0", "+loss=sid"], "a seed is nothing to choose; a trial has all of them"
    assert multirun.grid(sweep, "basic") == [*chosen, "+seed=3"]


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process, which starts one for each point"):
        command.main(["sweep=ema", "seed=0", "training.ema_decay=0.9", f"outputs={tmp_path}"])
