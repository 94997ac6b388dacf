"""A study's W&B dashboard as plain data, and the way from there into a project with the package wandb-workspaces.

A panel is {"panel": <class of wandb_workspaces.reports.v2>, <its attributes>}, where {"config": name} and
{"summary": name} stand for what a run was given and what it ended with. Runs are those tagged with the study's name,
grouped by its axes, as wandb_logger in training/logs.py writes them.
"""

from importlib import import_module
from typing import Any

from fgm.cli.studies.definition import Axis, Sweep
from fgm.utils.account import AXIS, PROJECT, final

Panel = dict[str, Any]


def dashboard(sweep: Sweep, entity: str | None) -> dict[str, Any]:
    """The whole of it."""
    sections = {"Answer": answer(sweep), "In training": curves(sweep), "Samples": samples(), "Runs": runs()}
    return {
        "name": f"Study {sweep.name}",
        "entity": entity,
        "project": PROJECT,
        "runs": {"tag": sweep.name, "groupby": [place(axis) for axis in sweep.axes.values()],
                 "columns": [f"summary:{final(metric)}" for metric in sweep.metrics]},
        "sections": [{"name": name, "panels": panels} for name, panels in sections.items()],
    }  # fmt: skip


def place(axis: Axis) -> str:
    """Where a run's config holds an axis: a setting at its own place, a word with the study."""
    return axis.name if axis.free else f"study.swept.{axis.name}"


def answer(sweep: Sweep) -> list[Panel]:
    """Final values against each axis, with the spread over the runs that share its value, and all axes at once."""
    question = {"panel": "MarkdownPanel", "markdown": f"**{sweep.question}**\n\n`make sweep SWEEP={sweep.name}`"}
    bars = [bar(sweep, axis, metric) for axis in sweep.axes.values() for metric in sweep.metrics]
    columns = [{"config": place(axis)} for axis in sweep.axes.values()] + [{"summary": final(sweep.metric)}]
    best = {"panel": "ParameterImportancePlot", "with_respect_to": final(sweep.metric)}
    return [question, *bars, {"panel": "ParallelCoordinatesPlot", "columns": columns, "title": "all axes"}, best]


def bar(sweep: Sweep, axis: Axis, metric: str) -> Panel:
    how = {"groupby": {"config": place(axis)}, "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    title = f"{metric} by {axis.name} ({sweep.metrics[metric]} is best)"
    return {"panel": "BarPlot", "title": title, "metrics": [final(metric)], "title_x": metric} | how


def curves(sweep: Sweep) -> list[Panel]:
    watched = [f"eval/{metric}" for metric in sweep.metrics]
    watched += [f"train/{name}" for name in ("mismatch", "online_loss", "generator_grad_norm")]
    how = {"x": AXIS, "title_x": "cycle", "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev", "aggregate": True}
    groupby = {"config": place(next(iter(sweep.axes.values())))}
    return [{"panel": "LinePlot", "title": name, "y": [name], "groupby": groupby} | how for name in watched]


def samples() -> list[Panel]:
    return [{"panel": "MediaBrowser", "title": "samples", "media_keys": ["eval/samples"], "num_columns": 2}]


def runs() -> list[Panel]:
    signs = ("oscillation", "gradient_spike", "drift")
    warnings = {"panel": "LinePlot", "title": "warning signs", "x": AXIS, "y": [f"warning/{sign}" for sign in signs]}
    return [{"panel": "RunComparer", "diff_only": "split"}, warnings]


def workspace(spec: dict[str, Any], url: str | None = None) -> Any:
    """The spec as a wandb_workspaces Workspace, unsaved: a new one, or the one at url with this content."""
    ws, expr, told = imported("workspaces"), imported("expr"), spec["runs"]
    runs = ws.RunsetSettings(
        filters=[expr.Tags().isin([told["tag"]])],
        groupby=[expr.Config(name) for name in told["groupby"]],
        pinned_columns=told["columns"],
    )
    sections = [
        ws.Section(name=s["name"], panels=[panel(p) for p in s["panels"]], is_open=True) for s in spec["sections"]
    ]
    if url is None:
        return ws.Workspace(spec["entity"], spec["project"], spec["name"], sections, runset_settings=runs)
    found = ws.Workspace.from_url(url)
    found.name, found.sections, found.runset_settings = spec["name"], sections, runs
    return found


def panel(told: Panel) -> Any:
    wr = imported("reports.v2")
    settings = {key: reference(value) for key, value in told.items() if key != "panel"}
    if told["panel"] == "ParallelCoordinatesPlot":
        settings["columns"] = [wr.ParallelCoordinatesPlotColumn(column) for column in settings["columns"]]
    return getattr(wr, told["panel"])(**settings)


def reference(value: Any) -> Any:
    """What a panel takes for {"config": name} and {"summary": name}."""
    if isinstance(value, list):
        return [reference(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, name),) = value.items()
    return getattr(imported("reports.v2"), {"config": "Config", "summary": "SummaryMetric"}[kind])(name)


def imported(module: str) -> Any:
    """Of the optional package."""
    return import_module(f"wandb_workspaces.{module}")
