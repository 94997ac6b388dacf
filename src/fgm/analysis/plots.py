"""The figures of a study, on white paper, in colours that the colour-blind can tell apart (Okabe and Ito's)."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import EngFormatter, FuncFormatter

from fgm.analysis.sweeps import Cell, Study, label, short_name

WIDTH, FONT, DPI = 4.4, 10.0, 170  # inches, points, dots an inch: a figure is as wide as a phone's page
INK, GRID = "#1d1f23", "#c9ccd1"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7F7F7F", "#882255")
STYLES, MARKERS = ("-", "--", ":", "-."), "osD^vP"
WIDE_RANGE = 12.0  # a ratio of values that needs a logarithmic axis
SEED_OFFSET = 0.015  # of the axis, from a mean to its seeds
Units = dict[str, str]


def figure(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return an empty figure with `rows` axes below each other, which share x."""
    made = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="#ffffff")
    axes = list(made.subplots(rows, 1, squeeze=False, sharex=True)[:, 0])
    for axis in axes:
        axis.set_facecolor("none")
        axis.tick_params(which="both", colors=INK, labelsize=FONT - 1)
        axis.grid(color=GRID, linewidth=0.5)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(GRID)
    return made, axes


def label_axes(axis: Axes, x: str, y: str) -> None:
    """Label both axes; a remark in brackets goes onto a second line beside y, whose side is short."""
    axis.set_xlabel(x, color=INK, fontsize=FONT)
    axis.set_ylabel(y.replace(" (", "\n("), color=INK, fontsize=FONT)


def legend_below(made: Figure, axis: Axes) -> None:
    handles, names = axis.get_legend_handles_labels()
    if handles:
        made.legend(handles, names, loc="outside lower left", ncols=1 if max(map(len, names)) > 26 else 2,
                    fontsize=FONT - 2, frameon=False, labelcolor=INK)  # fmt: skip


def scale(axis: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """Make an axis logarithmic if values are positive and spread far, with ticks at 1, 2 and 5 of each decade."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > WIDE_RANGE * min(finite):
        axis.set(**{f"{which}scale": "log"})
        along = axis.xaxis if which == "x" else axis.yaxis
        along.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        along.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))


class Look(NamedTuple):
    """Of one cell in every figure: colour by its value along x, line and marker by the other axes."""

    colour: Any
    style: str
    marker: str


def axis_along_x(study: Study) -> str:
    """Return the first numeric axis, or the first one."""
    return next((axis for axis in study.axes if study.is_numeric(axis)), study.axes[0])


def others(cell: Cell, along: str) -> str:
    """Label a cell by all axes but one."""
    return label({axis: value for axis, value in cell.swept.items() if axis != along})


def looks(study: Study) -> dict[str, Look]:
    """Return the cells' looks by their labels; colours that repeat have other lines."""
    along = axis_along_x(study)
    values, series = study.values(along), list(dict.fromkeys(others(cell, along) for cell in study.cells))
    shades = [colormaps["viridis"](0.88 * i / max(1, len(values) - 1)) for i in range(len(values))]
    colours: Sequence[Any] = shades if study.is_numeric(along) else COLOURS
    found = {}
    for cell in study.cells:
        repeat, colour = divmod(values.index(cell.swept[along]), len(colours))
        line = series.index(others(cell, along)) + repeat * len(series)
        found[label(cell.swept)] = Look(colours[colour], STYLES[line % len(STYLES)], MARKERS[line % len(MARKERS)])
    return found


def metric_figure(study: Study, units: Units) -> Figure:
    """Draw every seed as a dot, means joined along numbers or beside words, one standard deviation as a bar."""
    along = axis_along_x(study)
    names = dict.fromkeys(others(cell, along) for cell in study.finished)
    series = {name: [cell for cell in study.finished if others(cell, along) == name] for name in names}
    return (draw_numbers if study.is_numeric(along) else draw_words)(study, along, series, units)


def draw_numbers(study: Study, along: str, series: dict[str, list[Cell]], units: Units) -> Figure:
    made, (axis,) = figure(3.4)
    offset = SEED_OFFSET * (max(study.values(along)) - min(study.values(along)))
    for i, (name, cells) in enumerate(series.items()):
        colour, x = COLOURS[i % len(COLOURS)], [cell.swept[along] for cell in cells]
        means, spread = [c.mean(study.metric) for c in cells], [c.spread(study.metric) for c in cells]
        axis.errorbar(x, means, spread, color=colour, marker="o", markersize=4, capsize=3, label=name or "mean and sd")
        dots = [(cell.swept[along] + offset, value) for cell in cells for value in cell.values(study.metric)]
        axis.scatter(*zip(*dots, strict=True), s=12, color=colour, alpha=0.6, linewidths=0)
    for (name, value), style in zip(study.references(study.metric).items(), STYLES[1:], strict=False):
        axis.axhline(value, color=INK, linestyle=style, linewidth=1, label=name)
    scale(axis, "y", all_values(study))
    label_axes(axis, axis_label(along, study, units), metric_label(study))
    legend_below(made, axis)
    return made


def draw_words(study: Study, along: str, series: dict[str, list[Cell]], units: Units) -> Figure:
    """Put the words at the left side, which has room for them."""
    words = study.values(along)
    made, (axis,) = figure(1.3 + 0.3 * len(words) * max(1.0, 0.6 * len(series)))
    for i, (name, cells) in enumerate(series.items()):
        colour, shift = COLOURS[i % len(COLOURS)], (i - (len(series) - 1) / 2) * 0.8 / len(series)
        y = [words.index(cell.swept[along]) + shift for cell in cells]
        means, spread = [c.mean(study.metric) for c in cells], [c.spread(study.metric) for c in cells]
        axis.errorbar(means, y, xerr=spread, color=colour, marker="o", markersize=4, capsize=3, linestyle="none",
                      label=name or "mean and sd")  # fmt: skip
        dots = [(v, at) for cell, at in zip(cells, y, strict=True) for v in cell.values(study.metric)]
        axis.scatter(*zip(*dots, strict=True), s=14, color=colour, alpha=0.45, linewidths=0)
    axis.set_yticks(range(len(words)), [str(word) for word in words])
    axis.set_ylim(len(words) - 0.5, -0.5)
    for (name, value), style in zip(study.references(study.metric).items(), STYLES[1:], strict=False):
        axis.axvline(value, color=INK, linestyle=style, linewidth=1, label=name)
    scale(axis, "x", all_values(study))
    label_axes(axis, metric_label(study), axis_label(along, study, units))
    legend_below(made, axis)
    return made


def curves_figure(study: Study, units: Units) -> Figure:
    """Draw the deciding metric during training and the mismatch, thin for each seed and thick for their mean."""
    del units
    names, look = [f"eval/{study.metric}", "mismatch"], looks(study)
    made, axes = figure(4.6 + 0.09 * len(study.finished), len(names))
    for axis, name in zip(axes, names, strict=True):
        for cell in study.finished:
            draw_curves(axis, cell, name, look[label(cell.swept)])
        scale(axis, "y", [y for run in study.runs for _, y in run.get("curves", {}).get(name, [])])
        label_axes(axis, "", f"{study.metric}, in training" if name.startswith("eval/") else "mismatch |u - v|²")
    axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    label_axes(axes[-1], "images seen", axes[-1].get_ylabel())
    legend_below(made, axes[0] if axes[0].lines else axes[1])
    return made


def draw_curves(axis: Axes, cell: Cell, name: str, look: Look) -> None:
    curves = [run["curves"][name] for run in cell.runs if name in run.get("curves", {})]
    for curve in curves if len(curves) > 1 else []:
        axis.plot(*zip(*curve, strict=True), color=look.colour, linestyle=look.style, linewidth=0.5, alpha=0.35)
    if curves:
        mean = [(points[0][0], fmean(y for _, y in points)) for points in zip(*curves, strict=False)]
        axis.plot(*zip(*mean, strict=True), color=look.colour, linestyle=look.style, label=label(cell.swept))


def cost_figure(study: Study, units: Units) -> Figure:
    """Draw the deciding metric against the training time."""
    del units
    made, (axis,) = figure(3.2 + 0.09 * len(study.finished))
    for cell in study.finished:
        look = looks(study)[label(cell.swept)]
        axis.errorbar(cell.seconds, cell.mean(study.metric), cell.spread(study.metric), color=look.colour, capsize=2,
                      marker=look.marker, markersize=5, linestyle="none", label=label(cell.swept))  # fmt: skip
    scale(axis, "y", all_values(study))
    axis.set_xlim(left=0)
    label_axes(axis, "training, seconds a run", metric_label(study))
    legend_below(made, axis)
    return made


def samples_figure(pictures: dict[str, Path], columns: int = 4) -> Figure:
    """Draw a picture for each label, from the same noise."""
    rows = math.ceil(len(pictures) / columns)
    made = Figure(figsize=(2 * WIDTH, rows * (WIDTH / 2 + 0.3)), layout="constrained", facecolor="#ffffff")
    axes = made.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, path) in zip(axes.flat, pictures.items(), strict=False):
        axis.imshow(imread(path), interpolation="nearest")
        axis.set_title(name, fontsize=FONT - 1, color=INK)
    return made


def all_values(study: Study) -> list[float]:
    return [value for cell in study.cells for value in cell.values(study.metric)]


def axis_label(axis: str, study: Study, units: Units) -> str:
    return short_name(axis, study.axes) + (f" ({units[axis]})" if axis in units else "")


def metric_label(study: Study) -> str:
    n = next(r["n"] for r in study.runs[0]["results"] if r["metric"] == study.metric and r["weights"] != "real")
    better = "less" if study.metrics[study.metric] == "min" else "more"
    return f"{study.metric}, n = {n} ({better} is better)"


PLOTS: dict[str, Callable[[Study, Units], Figure]] = {
    "metric": metric_figure, "cost": cost_figure, "curves": curves_figure,
}  # fmt: skip


def write_plots(study: Study, units: Units, pictures: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Write <experiment>_<plot>.png into folder, with samples if there are pictures, and return the files by plot."""
    figures = {name: plot(study, units) for name, plot in PLOTS.items()}
    figures |= {"samples": samples_figure(pictures)} if pictures else {}
    files = {name: folder / f"{study.experiment}_{name}.png" for name in figures}
    for name, made in figures.items():
        made.savefig(files[name], dpi=DPI)
    return files
