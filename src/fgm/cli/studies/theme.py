"""How plots look, on a light and on a dark page; colours that the colour-blind can tell apart (Okabe and Ito's)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fgm.cli.studies.points import label
from fgm.cli.studies.rows import Cell, Study

WIDTH, FONT = 4.4, 10.0  # inches and points: a figure is as wide as a phone's page
DPI = 170  # of PNGs
STYLES = ("-", "--", ":", "-.")
MARKERS = "osD^vP"


@dataclass(frozen=True)
class Theme:
    """
    Attributes:
        ink, faint: of text and axes, and of grids and reference lines.
        page: background; None leaves it to the page.
        colours: of series.
        low, high: part of the colour map that stands out from the page.
    """

    ink: str
    faint: str
    page: str | None
    colours: Sequence[str]
    low: float = 0.0
    high: float = 1.0


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7F7F7F", "#882255")
BRIGHT = ("#56B4E9", "#F5793A", "#2FC99A", "#E29BC5", "#E6C229", "#9AD0F5", "#B0B0B0", "#D67BA0")
LIGHT = Theme("#1d1f23", "#c9ccd1", None, COLOURS, 0.0, 0.88)
DARK = Theme("#e6e7ea", "#4a4e57", None, BRIGHT, 0.25, 1.0)
PAPER = Theme("#1d1f23", "#c9ccd1", "#ffffff", COLOURS, 0.0, 0.88)


@dataclass(frozen=True)
class Look:
    """Of one cell in every figure: colour by the value along x, line and marker by the others."""

    colour: Any
    style: str
    marker: str


def axis_along_x(study: Study) -> str:
    """The first axis of numbers, or the first one."""
    return next((axis for axis in study.axes if study.numeric(axis)), study.axes[0])


def others(cell: Cell, along: str) -> str:
    """What tells a series from the others."""
    return label({axis: value for axis, value in cell.swept.items() if axis != along})


def looks(study: Study, theme: Theme) -> dict[str, Look]:
    """By the cells' labels."""
    along = axis_along_x(study)
    values, series = study.values(along), list(dict.fromkeys(others(cell, along) for cell in study.cells))
    colours = shades(len(values), theme) if study.numeric(along) else theme.colours
    found = {}
    for cell in study.cells:
        turn, colour = divmod(values.index(cell.swept[along]), len(colours))
        line = series.index(others(cell, along)) + turn * len(series)  # colours that come again have other lines
        found[label(cell.swept)] = Look(colours[colour], STYLES[line % len(STYLES)], MARKERS[line % len(MARKERS)])
    return found


def shades(n: int, theme: Theme) -> Sequence[Any]:
    """From small to large."""
    return [colormaps["viridis"](theme.low + (theme.high - theme.low) * i / max(1, n - 1)) for i in range(n)]


def figure(theme: Theme, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    made = Figure(figsize=(WIDTH, height), layout="constrained", facecolor=theme.page or "none")
    axes = list(made.subplots(rows, 1, squeeze=False, sharex=True)[:, 0])
    for axis in axes:
        axis.set_facecolor("none")
        axis.tick_params(which="both", colors=theme.ink, labelsize=FONT - 1)
        axis.grid(color=theme.faint, linewidth=0.5)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(theme.faint)
    return made, axes


def named(axis: Axes, theme: Theme, x: str, y: str) -> None:
    """A label of the upright axis that is longer than a low plot's side goes on in a second line."""
    axis.set_xlabel(x, color=theme.ink, fontsize=FONT)
    axis.set_ylabel(y.replace(" (", "\n("), color=theme.ink, fontsize=FONT)


def keyed(made: Figure, axis: Axes, theme: Theme) -> None:
    """The legend below the plot."""
    handles, names = axis.get_legend_handles_labels()
    if handles:
        made.legend(handles, names, loc="outside lower left", ncols=1 if max(map(len, names)) > 26 else 2,
                    fontsize=FONT - 2, frameon=False, labelcolor=theme.ink)  # fmt: skip
