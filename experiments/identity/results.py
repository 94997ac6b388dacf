"""From measured points to rows of runs.jsonl, and from rows to the table and the figure of README.md.

    fit_error       E w |v - v_theta|^2 over that of the teacher, E w |u - v_theta|^2
    covered         share of the way from the teacher to v_theta
    cosine_x, norm_x, gap_x     of a mixture's gradient with the reference gradient; norms relative to the reference's
    best_lambda_1   whose mixture has the nearest direction
    noise           cosine between two halves of the draws; all other values are free of that noise's bias

Mixtures x: l_1, l_2, fgm = L_1 + L_2, sid = -0.4 L_1 + L_2 (alpha = 1.2).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from gradients import Comparison
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fgm.analysis.plots import COLOURS, DPI, FONT, GRID, INK, MARKERS, figure, label_axes, legend_below
from fgm.analysis.tables import mean_and_sd, table_head, table_row
from fgm.utils.records import Measurement, read_rows

Row = dict[str, Any]
PARTS = 8  # of the draws
MIXTURES = {"l_1": (1.0, 0.0), "l_2": (0.0, 1.0), "fgm": (1.0, 1.0), "sid": (-0.4, 1.0)}  # weights of L_1 and L_2
ANGLES = {"L₁ + L₂": "fgm", "L₂": "l_2", "-0.4 L₁ + L₂": "sid", "L₁": "l_1"}
NORMS = {"norm L₁ + L₂": "norm_fgm", "norm L₂": "norm_l_2"}
HEAD = ["case", "turns", "fit error", *(f"{name}, °" for name in ANGLES), *NORMS, "best λ₁", "2 - 1/s", "seeds"]
BLOCK = re.compile(r"(<!-- study\.py: table -->\n).*?(<!-- end -->)", re.S)
PLOTTED = {"fgm": ("L₁ + L₂", 1.0), "l_2": ("L₂", 0.0), "sid": ("-0.4 L₁ + L₂ (SiD)", -0.4)}  # label, lambda_1
WORST, LEAST, LAGGING = 3.0, 2e-4, 1 / 9  # range of fit errors; where L_1 stops to harm for a network that lags
SHARES = [s / 200 for s in range(2, 200)]
MATTERS = 5.0  # degrees that L_2 must be off at v_theta itself for the best lambda_1 to mean something


@dataclass(frozen=True)
class Point:
    """One online network: see gradients.fit and gradients.half_cosine."""

    fit_error: float
    covered: float
    comparison: Comparison
    noise: float


def measurements(point: Point, case: Any) -> list[Measurement]:
    """Return a point's measurements; values that are not finite were lost in noise, and are left out."""
    known = "v_theta in closed form" if case.affine else f"an online network of {case.reference} turns as v_theta"
    protocol = f"{known}; inner products over pairs of {PARTS} parts of the draws"
    values, c = {"fit_error": point.fit_error, "covered": point.covered}, point.comparison
    for name, weights in MIXTURES.items():
        values |= {f"cosine_{name}": c.cosine(*weights), f"norm_{name}": c.norm(*weights)}
        values |= {f"gap_{name}": c.gap(*weights)}
    values |= {"best_lambda_1": c.best_lambda_1, "noise": point.noise}
    n = -(-case.draws // PARTS) * PARTS
    return [Measurement(k, v, n, protocol, 1, "raw") for k, v in values.items() if math.isfinite(v)]


@dataclass(frozen=True)
class Cell:
    """All seeds of a case after some updates; updates is None for v_theta itself."""

    case: str
    updates: int | None
    rows: list[Row]

    def values(self, metric: str) -> list[float]:
        return [r["value"] for row in self.rows for r in row["results"] if r["metric"] == metric]

    def mean(self, metric: str) -> float:
        return fmean(self.values(metric) or [math.nan])

    def angles(self, mixture: str) -> list[float]:
        """Return the degrees between the mixture's gradient and the reference's, per seed."""
        return [degrees(value) for value in self.values(f"cosine_{mixture}")]


def degrees(cosine: float) -> float:
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def cells_of(rows: Sequence[Row]) -> dict[str, list[Cell]]:
    """Group rows by case and updates, v_theta itself last; each case's newest definition and each newest row count."""
    last = {row["case"]: row["study_digest"] for row in rows}
    current = [row for row in rows if row["study_digest"] == last[row["case"]]]
    newest = {(row["case"], row["seed"], row["turns"]): row for row in current}.values()
    grouped: dict[str, dict[int | None, list[Row]]] = {}
    for row in newest:
        grouped.setdefault(row["case"], {}).setdefault(row["turns"], []).append(row)
    return {
        case: [Cell(case, n, group[n]) for n in sorted(group, key=lambda n: math.inf if n is None else n)]
        for case, group in grouped.items()
    }


def crossing(fit_errors: Sequence[float], full: Sequence[float], l_2: Sequence[float]) -> float | None:
    """Return the fit error above which L_1 harms: where the angles of L_1 + L_2 and of L_2 first are equal.

    From the best fit upwards, linear in the logarithm between two values; None if they never cross.
    """
    differences = sorted((error, a - b) for error, a, b in zip(fit_errors, full, l_2, strict=True) if error > 0)
    for (x, below), (y, above) in pairwise(differences):
        if below < 0 <= above:
            share = below / (below - above)
            return math.exp((1 - share) * math.log(x) + share * math.log(y))
    return None


def crossings(cells: Sequence[Cell]) -> list[float]:
    """Return the crossing of each seed that has one."""
    found = []
    for seed in sorted({row["seed"] for cell in cells for row in cell.rows}):
        own = [Cell(p.case, p.updates, [row for row in p.rows if row["seed"] == seed]) for p in cells]
        known = [p for p in own if p.values("cosine_fgm") and p.values("cosine_l_2")]
        columns = ([p.mean("fit_error") for p in known], *([p.angles(x)[0] for p in known] for x in ("fgm", "l_2")))
        found.append(crossing(*columns))
    return [value for value in found if value is not None]


def harm(cells: Sequence[Cell]) -> tuple[float, float]:
    """Return the degrees by which L_1 turns the gradient away at most, and brings it nearer at most; seed means."""
    known = [cell for cell in cells if cell.angles("fgm") and cell.angles("l_2")]
    by = [fmean(cell.angles("fgm")) - fmean(cell.angles("l_2")) for cell in known] or [0.0]
    return max(0.0, *by), max(0.0, *(-each for each in by))


def publish(page: Path) -> None:
    """Draw identity.png beside README.md, and refresh the table in README.md if there is a page."""
    rows = read_rows(page.with_name("runs.jsonl"))
    identity_figure(rows).savefig(page.with_name("identity.png"), dpi=DPI)
    if page.exists():
        page.write_text(with_table(page.read_text(), rows))


def with_table(text: str, rows: Sequence[Row]) -> str:
    return BLOCK.sub(lambda block: block[1] + "\n".join(table(rows)) + "\n" + block[2], text)


def table(rows: Sequence[Row]) -> list[str]:
    """Return Markdown; angles are between a mean gradient and the reference, norms relative to the reference's."""
    title = "**identity**, the gradient of λ₁ L₁ + L₂ beside that of E|u - v_θ|², mean over seeds"
    cases = cells_of(rows)
    body = [line(cell) for cells in cases.values() for cell in cells]
    return [title, "", *table_head(HEAD), *body, *(x for case, c in cases.items() for x in ("", remark(case, c)))]


def line(cell: Cell) -> str:
    s = cell.mean("covered")
    return table_row([
        cell.case, "v_θ itself" if cell.updates is None else str(cell.updates), mean_and_sd(cell.values("fit_error")),
        *(mean_and_sd(cell.angles(mixture)) for mixture in ANGLES.values()),
        *(mean_and_sd(cell.values(metric)) for metric in NORMS.values()),
        mean_and_sd(cell.values("best_lambda_1")), f"{2 - 1 / s:.3g}" if s > 0 else "", str(len(cell.rows)),
    ])  # fmt: skip


def remark(case: str, cells: Sequence[Cell]) -> str:
    """Say where L_1 harms and by how much, with the protocol and the noise."""
    rows = [row for cell in cells for row in cell.rows]
    found, seeds, (away, nearer) = crossings(cells), len({row["seed"] for row in rows}), harm(cells)
    above = f" above a fit error of {mean_and_sd(found)} ({len(found)} of {seeds} seeds)" if found else ""
    first = rows[-1]["results"][0]
    noise = degrees(fmean(value for cell in cells for value in cell.values("noise")))
    return (
        f"{case}: L₁ harms{above or ' nowhere'}, by at most {away:.2g}°; it helps by up to {nearer:.2g}°. "
        f"{first['protocol']}, n = {first['n']}, whose halves are {noise:.2g}° apart; {rows[-1]['device']}."
    )


def identity_figure(rows: Sequence[Row]) -> Figure:
    """Draw angles by fit error, an axis for each case, and one for the best lambda_1 of all; training goes right."""
    cases = cells_of(rows)
    made, axes = figure(2.0 * len(cases) + 4.6, len(cases) + 1)
    for axis, (case, cells) in zip(axes, cases.items(), strict=False):
        draw_angles(axis, cells)
        axis.set_title(case, fontsize=FONT, color=INK, loc="left")
        label_axes(axis, "", "angle, degrees")
    draw_best(axes[-1], cases)
    axes[-1].set(xscale="log", xlim=(WORST, LEAST))
    label_axes(axes[-1], "fit error, E|v - v_θ|² over E|u - v_θ|²", "best weight of L₁")
    for axis in axes:
        axis.axvline(LAGGING, color=INK, linestyle=":", linewidth=1, label="fit error 1/9")
    legend_below(made, axes[0])
    return made


def draw_angles(axis: Axes, cells: Sequence[Cell]) -> None:
    """Draw seeds as dots, their means joined, v_theta's own value at the right edge; dashed, a network that lags."""
    trained, exact = [p for p in cells if p.updates is not None], [p for p in cells if p.updates is None]
    for colour, (mixture, (name, lambda_1)) in zip(COLOURS, PLOTTED.items(), strict=False):
        means = sorted((p.mean("fit_error"), fmean(p.angles(mixture))) for p in trained if p.angles(mixture))
        axis.plot(*zip(*means, strict=True), color=colour, label=name)
        for row in (row for cell in trained for row in cell.rows):
            values = {r["metric"]: r["value"] for r in row["results"]}
            if f"cosine_{mixture}" in values:
                dot = values["fit_error"], degrees(values[f"cosine_{mixture}"])
                axis.scatter(*dot, s=10, color=colour, alpha=0.6, linewidths=0)
        for cell in exact:
            axis.plot(LEAST, fmean(cell.angles(mixture)), "<", color=colour, markersize=5, clip_on=False, zorder=5)
            label = "as it would be if v lagged on a line" if mixture == "fgm" else None
            lag = [((1 - s) ** 2, lagging_angle(cell, (2 - lambda_1) * s)) for s in SHARES]
            axis.plot(*zip(*lag, strict=True), color=colour, linestyle="--", linewidth=0.8, label=label)
    halves = fmean(degrees(value) for cell in cells for value in cell.values("noise"))
    axis.axhline(halves, color=GRID, linewidth=1.2, label="two halves of the draws")
    for i, error in enumerate(crossings(cells)):
        label = None if i else "L₁ harms, a shade for each seed"
        axis.axvspan(WORST, error, color=COLOURS[1], alpha=0.08, linewidth=0, label=label)
    axis.set_ylim(0)


def lagging_angle(exact: Cell, less: float) -> float:
    """Return the degrees of (3), B + (2 - less) A, from grad J = A + B; A is L_1's gradient at v_theta itself."""
    excess, size, cosine = 1 - less, exact.mean("norm_l_1"), exact.mean("cosine_l_1")
    across = size * math.sqrt(max(0.0, 1 - cosine**2))
    return math.degrees(math.atan2(abs(excess) * across, 1 + excess * size * cosine))


def draw_best(axis: Axes, cases: dict[str, list[Cell]]) -> None:
    """Draw best_lambda_1 beside 2 - 1/s of a network that lags, for the cases where it changes the direction."""
    for i, (case, cells) in enumerate(cases.items()):
        if any(angle > MATTERS for p in cells if p.updates is None for angle in p.angles("l_2")):
            known = sorted((p.mean("fit_error"), p.mean("best_lambda_1")) for p in cells if p.updates is not None)
            look = {"color": COLOURS[(i + 3) % 8], "marker": MARKERS[i % 6], "markersize": 4}
            axis.plot(*zip(*known, strict=True), label=case, **look)
    line = [((1 - s) ** 2, 2 - 1 / s) for s in SHARES]
    axis.plot(*zip(*line, strict=True), color=INK, linewidth=1, linestyle="--", label="2 - 1/s")
    axis.set_ylim(-3, 3)
    axis.legend(fontsize=FONT - 3, frameon=False, labelcolor=INK, ncols=2, loc="lower right")
