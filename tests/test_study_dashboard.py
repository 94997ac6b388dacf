"""A study's dashboard is data that wandb-workspaces takes as it is; runs bring what it asks for."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fgm.cli import dashboard as command
from fgm.cli.config import read_recipe
from fgm.cli.studies.definition import read_sweep, sweeps
from fgm.cli.studies.points import points
from fgm.cli.studies.workspace import dashboard, workspace
from fgm.training import logs


def flat(node: Any) -> list[Any]:
    """All leaves."""
    if isinstance(node, dict | list):
        return [leaf for item in (node.values() if isinstance(node, dict) else node) for leaf in flat(item)]
    return [node]


def at(config: dict[str, Any], dotted: str) -> Any:
    """A value by its place; a word of a study's axis may not hold dots."""
    node: Any = config
    for key in dotted.split("."):
        node = node[key]
    return node


@pytest.mark.parametrize("name", sweeps())
def test_the_axes_are_where_a_runs_config_has_them(name: str) -> None:
    sweep = read_sweep(name)
    part = {n: axis.restricted(str(next(iter(axis.values)))) for n, axis in sweep.axes.items()}
    (point,) = points(type(sweep)(**(vars(sweep) | {"axes": part, "seeds": [0]})), sweep.experiment, [])
    for place, value in zip(dashboard(sweep, None)["runs"]["groupby"], point.swept.values(), strict=True):
        assert at(point.config, place) == value


def test_without_an_account_the_spec_is_a_file_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    command.main(["sweep=t_star", f"outputs={tmp_path}", "entity=us"])
    assert "wandb-workspaces is not installed, pip install -e '.[dashboard]'" in capsys.readouterr().out
    monkeypatch.setattr(command, "find_spec", lambda name: name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    command.main(["sweep=t_star", f"outputs={tmp_path}", "entity=us"])
    assert "no W&B account is known here" in capsys.readouterr().out
    spec = json.loads((tmp_path / "t_star" / "dashboard.json").read_text())
    assert spec == dashboard(read_sweep("t_star"), "us") and spec["entity"] == "us"
    assert {"final/fd", "eval/fd", "eval/samples", "train/mismatch", "method.t_star"} <= set(flat(spec))


def test_wandb_workspaces_takes_every_panel() -> None:
    """The real package, which needs no account to make a workspace, only to save one."""
    for name in sweeps():
        spec = dashboard(read_sweep(name), "us")
        made = workspace(spec)._to_model().model_dump(by_alias=True, exclude_none=True)
        sections = made["spec"]["section"]["panelBankConfig"]["sections"]
        counts = {section["name"]: len(section["panels"]) for section in spec["sections"]}
        assert {section["name"]: len(section["panels"]) for section in sections} == counts
        assert name in flat(made["spec"]["section"]["runSets"]), "runs are filtered by the study's tag"


def test_a_dashboard_is_made_once_and_then_updated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def made(spec: dict[str, Any], url: str | None) -> Any:
        asked.append((spec["entity"], url))
        return SimpleNamespace(save=lambda: SimpleNamespace(url="https://wandb.ai/me/fgm?nw=1"))

    monkeypatch.setattr("fgm.cli.studies.workspace.workspace", made)
    monkeypatch.setattr("fgm.training.loggers.default_entity", lambda: "me")
    for _ in range(2):
        assert command.publish(dashboard(read_sweep("ema"), None), tmp_path / "url.txt").endswith("nw=1")
    assert asked == [("me", None), ("me", "https://wandb.ai/me/fgm?nw=1")]


def test_a_points_run_is_grouped_tagged_and_named_by_its_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    experiment = SimpleNamespace(id="1")
    fake = SimpleNamespace(experiment=experiment, define_axis=lambda metrics: given.append(metrics))
    monkeypatch.setattr(logs, "CycleWandbLogger", lambda **told: given.append(told) or fake)
    study = {"study": "t_star", "swept": {"method.t_star": 0.7}, "metrics": {"fd": "min"}}
    logs.wandb_logger(tmp_path, "digits_fgm", {"study": study})
    logs.wandb_logger(tmp_path, "digits_fgm", read_recipe("digits_fgm", []))
    assert (given[0]["group"], given[0]["tags"], given[0]["name"]) == (
        "t_star",
        ["t_star", "digits_fgm"],
        tmp_path.name,
    )
    assert given[1] == {"fd": "min"} and given[3] == {}
    assert (given[2]["group"], given[2]["tags"], given[2]["name"]) == (None, None, "digits_fgm")
