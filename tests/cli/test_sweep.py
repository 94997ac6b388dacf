"""A study is a Hydra multirun: every point composes, runs once, is recorded with its study, and may fail alone."""

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from omegaconf import OmegaConf

import fgm.cli.train
from fgm.analysis.sweeps import studies_of, study_tables
from fgm.cli import runs
from fgm.cli.config import CONFIGS, compose_experiment, composed, digest
from fgm.cli.sweep import read_sweep, sweeps, values_of, wandb_sweep
from fgm.training.module import DivergenceError
from fgm.utils.errors import UserError
from fgm.utils.records import read_rows, write_json

TOY = """# @package _global_
study: {name: toy, question: "?", metrics: {sliced_w2: min}}
hydra: {sweeper: {params: {method.t_star: "0.7,0.9", seed: "0,1"}}}
"""
TINY = [
    "experiment=mixture_fgm", "training.max_steps=2", "training.batch_size=8", "training.log_every_n_steps=1",
    "evaluation.every=0", "evaluation.n=64", "evaluation.n_in_training=64", "evaluation.batch=64",
    "method.teacher_steps=2", "network.width=8", "network.depth=1", "method.generator_init=random",
    "method.online_init=random", "method.ode_pairs=0", "logger=csv",
]  # fmt: skip


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs the toy study with some arguments; returns its runs.jsonl."""
    (tmp_path / "configs" / "sweep").mkdir(parents=True)
    (tmp_path / "configs" / "sweep" / "toy.yaml").write_text(TOY)
    monkeypatch.setattr(runs, "commit", lambda: "0123456789ab")
    places = [f"outputs={tmp_path}/outputs", f"experiments={tmp_path}/experiments"]

    def run(*arguments: str) -> Path:
        flags = [a for a in arguments if a.startswith("-")]
        overrides = ["+sweep=toy", *TINY, *places, *(a for a in arguments if a not in flags)]
        fgm.cli.train.main([*flags, f"--config-dir={tmp_path}/configs", *overrides])
        return tmp_path / "experiments" / "toy" / "runs.jsonl"

    return run


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the training: t* = 0.9 diverges, and every other run has the value of its t*."""
    started: list[str] = []

    def train(config: dict[str, Any]) -> None:
        run_dir, t_star = Path(config["run_dir"]), config["method"]["t_star"]
        if runs.is_done(config, run_dir):
            return
        started.append(f"{t_star} {config['seed']}")
        if t_star == 0.9:
            raise DivergenceError("20 gradients in a row are not finite\nand more")
        result = {"metric": "sliced_w2", "value": t_star, "n": 9, "protocol": "toy", "nfe": 1, "weights": "ema"}
        run_dir.mkdir(parents=True)
        runs.write_yaml(config, run_dir / "config.yaml")
        row = runs.origin(config) | {"device": "cpu", "train_s": 1.0, "results": [result]} | config["study"]
        write_json(run_dir / runs.RESULTS, row)
        runs.record(config)

    monkeypatch.setattr(fgm.cli.train, "train", train)
    return started


def test_finished_points_are_skipped_and_a_failure_is_a_row(toy: Callable[..., Path], trained: list[str]) -> None:
    rows = read_rows(toy("-m"))
    assert [(row["swept"], row["seed"]) for row in rows] == [
        ({"method.t_star": t_star}, seed) for t_star in (0.7, 0.9) for seed in (0, 1)
    ]
    assert [row.get("failed") for row in rows[2:]] == ["DivergenceError: 20 gradients in a row are not finite"] * 2
    assert len({row["config_digest"] for row in rows}) == 4 and len({row["sweep_digest"] for row in rows}) == 1
    assert trained == ["0.7 0", "0.7 1", "0.9 0", "0.9 1"]
    again = read_rows(toy("-m"))
    assert trained[4:] == ["0.9 0", "0.9 1"] and again[:4] == rows
    (study,) = studies_of(again)
    assert [len(cell.failed) for cell in study.cells] == [0, 2] and study.best is study.cells[0]
    assert "| 0.9 | failed | 0 of 2 |  |" in study_tables(again)


def test_single_runs_record_the_points_of_the_multirun(toy: Callable[..., Path], trained: list[str]) -> None:
    """So W&B's agents do."""
    rows = read_rows(toy("-m", "method.t_star=0.7,0.8"))
    single = read_rows(toy("method.t_star=0.6", "seed=1"))[-1]
    assert (single["swept"], single["seed"]) == ({"method.t_star": 0.6}, 1)
    assert single["sweep_digest"] == rows[0]["sweep_digest"]
    with pytest.raises(DivergenceError):
        toy("method.t_star=0.9")


def test_other_values_define_another_study(toy: Callable[..., Path], trained: list[str]) -> None:
    toy("-m", "method.t_star=0.7")
    rows = read_rows(toy("-m", "method.t_star=0.7", "optimizer.lr=0.1"))
    assert len({row["sweep_digest"] for row in rows}) == 2


def test_sweepers_see_the_deciding_metric_and_the_worst_of_a_failure(
    toy: Callable[..., Path], trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values: list[float] = []
    run_point = fgm.cli.train.sweep.run_point
    monkeypatch.setattr(fgm.cli.train.sweep, "run_point", lambda *given: values.append(run_point(*given)))
    toy("-m", "seed=0")
    assert values == [0.7, math.inf]


def test_a_user_error_stops_the_sweep(toy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: dict[str, Any]) -> None:
        raise UserError("the teacher is missing")

    monkeypatch.setattr(fgm.cli.train, "train", train)
    with pytest.raises(UserError, match="the teacher is missing"):
        toy("-m")


def test_a_trained_point_leaves_its_row_curves_and_samples_but_no_checkpoints(toy: Callable[..., Path]) -> None:
    path = toy("-m", "method.t_star=0.7", "seed=0")
    (row,) = read_rows(path)
    assert row["study"] == "toy" and row["curves"]["mismatch"] and row["results"][0]["metric"]
    (run_dir,) = (path.parents[2] / "outputs" / "toy").iterdir()
    assert (run_dir / "samples" / "drawn.png").exists() and not (run_dir / "checkpoints").exists()
    assert len(read_rows(toy("-m", "method.t_star=0.7", "seed=0"))) == 1


@pytest.mark.parametrize("name", sweeps())
def test_every_value_of_every_axis_composes_to_a_config_of_its_own(name: str) -> None:
    sweep = read_sweep(name)
    assert sweep.question and sweep.seeds == [0, 1, 2] and set(sweep.metrics.values()) <= {"min", "max"}
    for axis, values in sweep.axes.items():
        points = [OmegaConf.to_container(composed(default(name), [f"+sweep={name}", f"{axis}={v}"])) for v in values]
        plain: Any = [OmegaConf.to_container(OmegaConf.create(point), resolve=True) for point in points]
        assert len({digest(point) for point in plain}) == len(values)
    first = [f"{axis}={values[0]}" for axis, values in sweep.axes.items()]
    assert compose_experiment(default(name), [f"+sweep={name}", *first])["run_dir"].startswith(f"outputs/{name}/")


def default(name: str) -> str:
    """The experiment that a sweep chooses."""
    defaults = OmegaConf.load(CONFIGS / "sweep" / f"{name}.yaml").get("defaults", [])
    return next((d["override /experiment"] for d in defaults if "override /experiment" in d), "digits_fgm")


@pytest.mark.parametrize("method", ["grid", "bayes"])
@pytest.mark.parametrize("name", sweeps())
def test_wandb_files_fit_wandbs_schema(name: str, method: str) -> None:
    spec = importlib.util.find_spec("sweeps")  # W&B's sweep engine, read as a file
    assert spec and spec.origin
    schema = json.loads((Path(spec.origin).parent / "config" / "schema.json").read_text())
    written = yaml.safe_load(yaml.safe_dump(wandb_sweep(read_sweep(name), method, ["optimizer.lr=0.1"])))
    Draft7Validator(schema).validate(written)
    assert written["command"][3:-1] == ["fgm.cli.train", f"+sweep={name}", "optimizer.lr=0.1"]
    assert list(Draft7Validator(schema).iter_errors(written | {"method": "grid search"}))


def test_values_are_read_as_hydra_reads_them() -> None:
    assert values_of("x", "1e-5,one,0.5") == [1e-5, "one", 0.5] and values_of("x", 7) == [7]
    with pytest.raises(UserError, match="did you mean t_star"):
        read_sweep("t_sta")
