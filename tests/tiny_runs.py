"""What the commands' tests share: a finished run of random weights, and the one line of a refusal."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fgm.cli.config import compose_experiment
from fgm.cli.runs import write_yaml
from fgm.utils.errors import entry

TINY = [
    "method.generator_init=random",
    "evaluation.n=60",
    "evaluation.batch=20",
    "network.width=16",
    "network.depth=1",
]
Said = pytest.CaptureFixture[str]


def finished(outputs: Path, experiment: str, overrides: list[str]) -> list[str]:
    from hydra.utils import instantiate

    arguments = [f"experiment={experiment}", *overrides, f"outputs={outputs}"]
    config = compose_experiment(experiment, arguments[1:])
    run_dir = Path(config["run_dir"])
    run_dir.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = instantiate(config["network"]).state_dict()
    save_file(weights, run_dir / "generator.safetensors")
    write_yaml(config, run_dir / "config.yaml")
    (run_dir / "results.json").write_text("{}")
    return arguments


SHAPES = [
    "data=shapes", "network=mmdit_shapes", "evaluation=shape_eval", "method.generator_init=random", "evaluation.n=24",
    "evaluation.batch=12", "evaluation.suite.prompts_per_tag=4", "evaluation.suite.images_per_tag=4",
    "network.width=16", "network.depth=1", "network.heads=2",
]  # fmt: skip


def run_dir(run: list[str]) -> Path:
    return Path(compose_experiment("digits_fgm", run[1:])["run_dir"])


def rescale(directory: Path, scale: float) -> None:
    weights = load_file(directory / "generator.safetensors")
    save_file({name: w * scale for name, w in weights.items()}, directory / "generator.safetensors")


def nan_weights(run: list[str], tmp_path: Path) -> list[str]:
    shutil.copytree(run_dir(run), tmp_path / "run", ignore=shutil.ignore_patterns("evaluation", "export"))
    rescale(tmp_path / "run", float("nan"))
    return [*run, f"run_dir={tmp_path / 'run'}"]


def refused(
    main: Callable[[list[str]], None], arguments: list[str], said: Said, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The line on stderr of a command that ends with exit code 2."""
    said.readouterr()
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stop:
        entry(main, None)
    line = said.readouterr().err
    assert stop.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1
    return line


def results_of(said: str) -> dict:
    """The last results.json that `make eval` names."""
    return json.loads(Path(re.findall(r"provenance: (.*results\.json)", said)[-1]).read_text())
