"""Figures on white paper, in colours that the colour-blind can tell apart (Okabe and Ito's)."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, FONT, DPI = 4.4, 10.0, 170  # inches, points, dots an inch: a figure is as wide as a phone's page
INK, GRID = "#1d1f23", "#c9ccd1"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7F7F7F", "#882255")
STYLES, MARKERS = ("-", "--", ":", "-."), "osD^vP"


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
