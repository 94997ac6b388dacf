"""The picture of the study: angles to the reference gradient by fit error, and the weight of L_1 that would be best."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fgm.cli.studies.identity.rows import Cell, Row, cells_of, crossings, degrees
from fgm.cli.studies.theme import DPI, FONT, MARKERS, PAPER, figure, keyed, named

SHOWN = {"fgm": ("L₁ + L₂", 1.0), "l_2": ("L₂", 0.0), "sid": ("-0.4 L₁ + L₂ (SiD)", -0.4)}  # name, lambda_1
WORST, LEAST, LAGGING = 3.0, 2e-4, 1 / 9  # fit errors shown; where L_1 stops to harm for a network that lags
SHARES = [s / 200 for s in range(2, 200)]
MATTERS = 5.0  # degrees that L_2 is off with v_theta itself


def write_picture(rows: Sequence[Row], path: Path) -> Path:
    identity_figure(rows).savefig(path, dpi=DPI)
    return path


def identity_figure(rows: Sequence[Row]) -> Figure:
    """An axis for each case, and one for best_lambda_1 of all; training goes to the right."""
    cases = cells_of(rows)
    made, axes = figure(PAPER, 2.0 * len(cases) + 4.6, len(cases) + 1)
    for axis, (case, cells) in zip(axes, cases.items(), strict=False):
        draw_angles(axis, cells)
        axis.set_title(case, fontsize=FONT, color=PAPER.ink, loc="left")
        named(axis, PAPER, "", "angle, degrees")
    draw_best(axes[-1], cases)
    axes[-1].set(xscale="log", xlim=(WORST, LEAST))
    named(axes[-1], PAPER, "fit error, E|v - v_θ|² over E|u - v_θ|²", "best weight of L₁")
    for axis in axes:
        axis.axvline(LAGGING, color=PAPER.ink, linestyle=":", linewidth=1, label="fit error 1/9")
    keyed(made, axes[0], PAPER)
    return made


def draw_angles(axis: Axes, cells: Sequence[Cell]) -> None:
    """Seeds as dots, their means joined, v_theta's own value at the right edge; dashed, a network that lags."""
    trained, exact = [p for p in cells if p.turns is not None], [p for p in cells if p.turns is None]
    for colour, (mixture, (name, lambda_1)) in zip(PAPER.colours, SHOWN.items(), strict=False):
        known = sorted((p.mean("fit_error"), fmean(p.angles(mixture))) for p in trained if p.angles(mixture))
        axis.plot(*columns(known), color=colour, label=name)
        dots = [dot for cell in trained for dot in seeds(cell, mixture)]
        axis.scatter(*columns(dots), s=10, color=colour, alpha=0.6, linewidths=0)
        for cell in exact:
            axis.plot(LEAST, fmean(cell.angles(mixture)), "<", color=colour, markersize=5, clip_on=False, zorder=5)
            told = "as it would be if v lagged on a line" if mixture == "fgm" else None
            lag = [((1 - s) ** 2, lagging(cell, (2 - lambda_1) * s)) for s in SHARES]
            axis.plot(*columns(lag), color=colour, linestyle="--", linewidth=0.8, label=told)
    halves = fmean(degrees(value) for cell in cells for value in cell.values("noise"))
    axis.axhline(halves, color=PAPER.faint, linewidth=1.2, label="two halves of the draws")
    for i, found in enumerate(crossings(cells)):
        told = None if i else "L₁ harms, a shade for each seed"
        axis.axvspan(WORST, found, color=PAPER.colours[1], alpha=0.08, linewidth=0, label=told)
    axis.set_ylim(0)


def seeds(cell: Cell, mixture: str) -> list[tuple[float, float]]:
    """Fit error and angle of each seed that has one."""
    told = [{r["metric"]: r["value"] for r in row["results"]} for row in cell.rows]
    name = f"cosine_{mixture}"
    return [(values["fit_error"], degrees(values[name])) for values in told if name in values]


def lagging(exact: Cell, less: float) -> float:
    """Degrees of (3), B + (2 - less) A, from grad J = A + B; A is what L_1 has with v_theta itself."""
    excess, size, cosine = 1 - less, exact.mean("norm_l_1"), exact.mean("cosine_l_1")
    across = size * math.sqrt(max(0.0, 1 - cosine**2))
    return math.degrees(math.atan2(abs(excess) * across, 1 + excess * size * cosine))


def draw_best(axis: Axes, cases: dict[str, list[Cell]]) -> None:
    """With the lagging network's 2 - 1/s, at fit error (1 - s)^2; of cases where it matters for the direction."""
    for i, (case, cells) in enumerate(cases.items()):
        if not any(angle > MATTERS for p in cells if p.turns is None for angle in p.angles("l_2")):
            continue
        known = sorted((p.mean("fit_error"), p.mean("best_lambda_1")) for p in cells if p.turns is not None)
        axis.plot(*columns(known), color=PAPER.colours[(i + 3) % 8], marker=MARKERS[i % 6], markersize=4, label=case)
    line = [((1 - s) ** 2, 2 - 1 / s) for s in SHARES]
    axis.plot(*columns(line), color=PAPER.ink, linewidth=1, linestyle="--", label="2 - 1/s")
    axis.set_ylim(-3, 3)
    axis.legend(fontsize=FONT - 3, frameon=False, labelcolor=PAPER.ink, ncols=2, loc="lower right")


def columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]
