"""What tests of sweeps share: a sweep of two times t*, its tiny runs, and runs that are acted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fgm.cli import recording
from fgm.cli.config import digest
from fgm.cli.runs import runs_file, write_yaml
from fgm.cli.studies import definition
from fgm.cli.studies.definition import Sweep
from fgm.cli.studies.points import Point, points
from fgm.cli.studies.process import Outcome, Processes
from fgm.utils.records import append_row, read_rows, write_json

TINY = [
    "training.max_steps=4", "training.batch_size=8", "training.log_every_n_steps=2", "training.save_every_n_steps=1", "evaluation.every=2",
    "evaluation.n=64", "evaluation.n_in_training=64", "evaluation.batch=64", "method.teacher_steps=2", "network.width=8",
    "method.generator_init=random", "method.online_init=random", "logger=csv",
]  # fmt: skip
SILENT = Console(quiet=True)
Run = Callable[[Processes, dict[str, Any]], Outcome]


@pytest.fixture(autouse=True)
def committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "commit", lambda: "0123456789ab")


def toy(seeds: list[int], recipe: str, *more: str, values: Any = (0.7, 0.9)) -> Sweep:
    axis = definition.read_axis("method.t_star", list(values), "here")
    return Sweep("toy", "?", {"sliced_w2": "min"}, {"method.t_star": axis}, recipe, seeds, list(more))


def points_of(place: Path, seeds: list[int], recipe: str = "mixture_fgm", *more: str, **values: Any) -> list[Point]:
    places = [f"outputs={place}/outputs", f"experiments={place}/experiments"]
    return points(toy(seeds, recipe, *more, **values), recipe, places)


def rows_of(made: list[Point]) -> list[dict[str, Any]]:
    return read_rows(runs_file(made[0].config))


def acted(failing: float = -1.0, metric: str = "sliced_w2", ran: list[str] | None = None) -> Run:
    """What a run leaves behind, without the run; that of one t* fails."""

    def run(processes: Processes, config: dict[str, Any]) -> Outcome:
        del processes
        (ran if ran is not None else []).append(config["run_dir"])
        if config["method"].get("t_star") == failing:
            return Outcome("DivergenceError: generator: 20 non-finite gradients in a row", False, 1.0)
        result = {"metric": metric, "value": 0.5, "n": 9, "protocol": "acted", "nfe": 1, "weights": "ema"}
        told = {"recipe": config["recipe"], "config_digest": digest(config), "seed": config["seed"], "device": "cpu"}
        row = told | {"train_s": 1.0, "results": [result]} | config.get("study", {})
        append_row(runs_file(config), row)
        Path(config["run_dir"]).mkdir(parents=True, exist_ok=True)
        write_yaml(config, Path(config["run_dir"]) / "config.yaml")
        write_json(Path(config["run_dir"]) / "results.json", row)
        return Outcome(None, False, 1.0)

    return run
