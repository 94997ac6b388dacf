"""The plots of a study: the metric along an axis with every seed, learning curves, cost, and the samples themselves."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import EngFormatter, FuncFormatter

from fgm.cli.studies.points import label, short
from fgm.cli.studies.rows import Cell, Study
from fgm.cli.studies.theme import FONT, WIDTH, Look, Theme, axis_along_x, figure, keyed, looks, named, others

MANY_FOLD = 12.0  # a spread of values that a linear axis would not show
BESIDE = 0.015  # of the axis, from a mean to its seeds


def metric_figure(study: Study, theme: Theme, units: dict[str, str]) -> Figure:
    """Every seed as a dot, the means joined or side by side, and one standard deviation as a bar."""
    along = axis_along_x(study)
    return (along_numbers if study.numeric(along) else along_words)(study, along, theme, units)


def along_numbers(study: Study, along: str, theme: Theme, units: dict[str, str]) -> Figure:
    made, (axis,) = figure(theme, 3.4)
    for i, (name, cells) in enumerate(series(study, along).items()):
        colour, x = theme.colours[i % len(theme.colours)], [cell.swept[along] for cell in cells]
        spread = [cell.spread(study.metric) for cell in cells]
        means = [cell.mean(study.metric) for cell in cells]
        axis.errorbar(x, means, spread, color=colour, marker="o", markersize=4, capsize=3, label=name or "mean and sd")
        beside = BESIDE * (max(study.values(along)) - min(study.values(along)))
        dots = [(cell.swept[along] + beside, value) for cell in cells for value in cell.values(study.metric)]
        axis.scatter(*zip(*dots, strict=True), s=12, color=colour, alpha=0.6, linewidths=0)
    refer(axis, study, theme)
    scale(axis, "y", every_value(study))
    named(axis, theme, axis_label(along, study, units), metric_label(study))
    keyed(made, axis, theme)
    return made


def along_words(study: Study, along: str, theme: Theme, units: dict[str, str]) -> Figure:
    """Words stand at the side, where there is room for them."""
    words, groups = study.values(along), series(study, along)
    made, (axis,) = figure(theme, 1.3 + 0.3 * len(words) * max(1.0, 0.6 * len(groups)))
    for i, (name, cells) in enumerate(groups.items()):
        colour, shift = theme.colours[i % len(theme.colours)], (i - (len(groups) - 1) / 2) * 0.8 / len(groups)
        y = [words.index(cell.swept[along]) + shift for cell in cells]
        means, spread = [c.mean(study.metric) for c in cells], [c.spread(study.metric) for c in cells]
        axis.errorbar(means, y, xerr=spread, color=colour, marker="o", markersize=4, capsize=3, linestyle="none",
                      label=name or "mean and sd")  # fmt: skip
        dots = [(v, at) for cell, at in zip(cells, y, strict=True) for v in cell.values(study.metric)]
        axis.scatter(*zip(*dots, strict=True), s=14, color=colour, alpha=0.45, linewidths=0)
    axis.set_yticks(range(len(words)), [str(word) for word in words])
    axis.set_ylim(len(words) - 0.5, -0.5)
    refer(axis, study, theme, upright=True)
    scale(axis, "x", every_value(study))
    named(axis, theme, metric_label(study), axis_label(along, study, units))
    keyed(made, axis, theme)
    return made


def series(study: Study, along: str) -> dict[str, list[Cell]]:
    """Cells that differ along one axis only, by what they share; those that have values."""
    names = dict.fromkeys(others(cell, along) for cell in study.finished)
    return {name: [cell for cell in study.finished if others(cell, along) == name] for name in names}


def refer(axis: Axes, study: Study, theme: Theme, upright: bool = False) -> None:
    """Lines for the teacher's many calls and for real data."""
    for (name, value), style in zip(study.reference(study.metric).items(), ("--", ":", "-."), strict=False):
        (axis.axvline if upright else axis.axhline)(value, color=theme.ink, linestyle=style, linewidth=1, label=name)


def curves_figure(study: Study, theme: Theme, units: dict[str, str]) -> Figure:
    """The deciding metric in training and the mismatch, thin for each seed and thick for their mean."""
    del units
    shown, look = [f"eval/{study.metric}", "mismatch"], looks(study, theme)
    made, axes = figure(theme, 4.6 + 0.09 * len(study.finished), len(shown))
    for axis, name in zip(axes, shown, strict=True):
        for cell in study.finished:
            draw_curves(axis, cell, name, look[label(cell.swept)])
        scale(axis, "y", [y for run in study.runs for _, y in run.get("curves", {}).get(name, [])])
        named(axis, theme, "", f"{study.metric}, in training" if name.startswith("eval/") else "mismatch |u - v|²")
    axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    named(axes[-1], theme, "images seen", axes[-1].get_ylabel())
    keyed(made, axes[0] if axes[0].lines else axes[1], theme)
    return made


def draw_curves(axis: Axes, cell: Cell, name: str, look: Look) -> None:
    curves = [run["curves"][name] for run in cell.runs if name in run.get("curves", {})]
    for curve in curves if len(curves) > 1 else []:
        axis.plot(*zip(*curve, strict=True), color=look.colour, linestyle=look.style, linewidth=0.5, alpha=0.35)
    if curves:
        common = [(points[0][0], fmean(y for _, y in points)) for points in zip(*curves, strict=False)]
        axis.plot(*zip(*common, strict=True), color=look.colour, linestyle=look.style, label=label(cell.swept))


def cost_figure(study: Study, theme: Theme, units: dict[str, str]) -> Figure:
    """The deciding metric against the time that training took."""
    del units
    made, (axis,) = figure(theme, 3.2 + 0.09 * len(study.finished))
    for cell in study.finished:
        look = looks(study, theme)[label(cell.swept)]
        axis.errorbar(cell.seconds, cell.mean(study.metric), cell.spread(study.metric), color=look.colour, capsize=2,
                      marker=look.marker, markersize=5, linestyle="none", label=label(cell.swept))  # fmt: skip
    scale(axis, "y", every_value(study))
    axis.set_xlim(left=0)
    named(axis, theme, "training, seconds a run", metric_label(study))
    keyed(made, axis, theme)
    return made


def samples_figure(pictures: dict[str, Path], theme: Theme, columns: int = 4) -> Figure:
    """A picture for each label, from the same noise."""
    rows = math.ceil(len(pictures) / columns)
    made = Figure(figsize=(2 * WIDTH, rows * (WIDTH / 2 + 0.3)), layout="constrained", facecolor=theme.page or "none")
    axes = made.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, path) in zip(axes.flat, pictures.items(), strict=False):
        axis.imshow(imread(path), interpolation="nearest")
        axis.set_title(name, fontsize=FONT - 1, color=theme.ink)
    return made


def scale(axis: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """Logarithmic where the values are positive and spread far, with ticks named at 1, 2 and 5 of each decade."""
    known = [value for value in values if math.isfinite(value)]
    if known and min(known) > 0 and max(known) > MANY_FOLD * min(known):
        axis.set(**{f"{which}scale": "log"})
        along = axis.xaxis if which == "x" else axis.yaxis
        along.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        along.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))


def every_value(study: Study) -> list[float]:
    return [value for cell in study.cells for value in cell.values(study.metric)]


def axis_label(axis: str, study: Study, units: dict[str, str]) -> str:
    return short(axis, study.axes) + (f" ({units[axis]})" if axis in units else "")


def metric_label(study: Study) -> str:
    """The metric, what its number stands on, and which way is better."""
    n = next(r["n"] for r in study.runs[0]["results"] if r["metric"] == study.metric and r["weights"] != "real")
    better = "less" if study.metrics[study.metric] == "min" else "more"
    return f"{study.metric}, n = {n} ({better} is better)"
