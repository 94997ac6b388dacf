"""Every command is a Hydra application: help, composed configs, grids, added config directories and completion."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fgm.cli import evaluate, sample, train
from fgm.cli.config import experiment_names
from fgm.utils.errors import UserError

Ran = list[dict[str, Any]]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ran:
    """The configs that `fgm train` would train, in an empty folder."""
    configs: Ran = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train", lambda config: configs.append(config) or float(config["method"]["t_star"]))
    return configs


def test_help_lists_experiments_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        sample.main(["--help"])
    shown = capsys.readouterr().out
    assert not stop.value.code and all(name in shown for name in experiment_names())
    assert "sample_seed: 0" in shown and "t_star: 0.7" in shown


def test_cfg_job_prints_the_composed_config(capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--cfg", "job", "method.t_star=0.3"])
    assert yaml.safe_load(capsys.readouterr().out)["method"]["t_star"] == 0.3


def test_a_value_is_returned_and_nothing_is_written_by_hydra(ran: Ran, tmp_path: Path) -> None:
    assert train.main(["method.t_star=0.3"]) == 0.3
    assert [config["experiment"] for config in ran] == ["digits_fgm"] and not list(tmp_path.iterdir())


def test_a_grid_is_run_point_by_point(ran: Ran) -> None:
    train.main(["-m", "experiment=mixture_fgm", "method.t_star=0.5,1.0", "seed=range(2)"])
    assert [Path(config["run_dir"]).name for config in ran] == [
        "mixture_fgm__method.t_star-0.5", "mixture_fgm__method.t_star-0.5__seed-1",
        "mixture_fgm", "mixture_fgm__seed-1",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # Optuna 2's own
def test_optuna_searches_a_continuous_t_star(ran: Ran, tmp_path: Path) -> None:
    """The stubbed measure is t_star itself, so the best trial is the least one drawn."""
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=5", "hydra.sweeper.sampler.seed=0"]
    train.main(["-m", "experiment=mixture_fgm", *sweeper, "method.t_star=interval(0.5,1.0)"])
    tried = [config["method"]["t_star"] for config in ran]
    (best,) = tmp_path.glob("outputs/multirun/optimization_results.yaml")
    assert len(set(tried)) == 5 and all(0.5 <= t_star <= 1 for t_star in tried)
    assert yaml.safe_load(best.read_text())["best_value"] == pytest.approx(min(tried))


def test_a_grid_of_runs_on_several_devices_is_refused(ran: Ran) -> None:
    with pytest.raises(UserError, match="-m is for one device"):
        train.main(["-m", "strategy=ddp", "trainer.devices=2", "seed=0,1"])
    assert not ran


def test_a_config_directory_adds_experiments(ran: Ran, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "small.yaml").write_text("# @package _global_\nnetwork: {width: 48}\n")
    train.main(["--config-dir", "mine", "experiment=small", "seed=1"])
    assert ran[0]["network"]["width"] == 48 and ran[0]["run_dir"] == "outputs/small__seed-1"


def test_a_commands_own_settings_do_not_name_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Ran = []

    def noted(config: dict[str, Any]) -> dict[str, Any]:
        asked.append(config)
        raise UserError("enough")

    for command in (evaluate, sample):
        monkeypatch.setattr(command, "finished", noted)
    for command, own in (
        (evaluate, "n=5"),
        (sample, "prompt=a, (b) ${c} 'd'"),
        (evaluate, "evaluator=random_features"),
    ):
        with pytest.raises(UserError, match="enough"):
            command.main([own, "method.t_star=0.9"])
    assert {config["run_dir"] for config in asked} == {"outputs/digits_fgm__method.t_star-0.9"}


def test_a_run_is_recorded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="holds no finished run"):
        train.record(["experiment=mixture_fgm"])
    monkeypatch.setattr(train, "train", lambda config: train.runs.write_yaml(config, Path("run.yaml")))
    train.main(["experiment=mixture_fgm"])
    folder = tmp_path / "outputs" / "mixture_fgm"
    folder.mkdir(parents=True)
    Path("run.yaml").rename(folder / "config.yaml")
    (folder / "results.json").write_text('{"seed": 0, "results": []}')
    for _ in range(2):
        train.record(["experiment=mixture_fgm"])
    assert Path("experiments/mixture_fgm/runs.jsonl").read_text().count("\n") == 1


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in {
        "trian": "error: there is no command 'trian'; did you mean train?",
        "train method.t_star=2": "error: method.t_star = 2: must lie in (0, 1]",
    }.items():
        command = [sys.executable, "-m", "fgm.cli.main", *words.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(message)
    with pytest.raises(SystemExit, match="2"):
        train.main(["--nonsense"])
    assert "unrecognized arguments: --nonsense" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
