"""Points as rows, rows as curves, and where L_1 stops to harm.

    fit_error       E w |v - v_theta|^2 over that of the teacher, E w |u - v_theta|^2
    covered         share of the way from the teacher to v_theta
    cosine_x, norm_x, gap_x     of a mixture's gradient beside the reference gradient; norms over the reference's
    best_lambda_1   whose mixture has the nearest direction
    noise           cosine of two halves of the draws; no other value is without that noise's bias

Mixtures x: l_1, l_2, fgm = L_1 + L_2, sid = -0.4 L_1 + L_2 (alpha = 1.2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from fgm.cli.studies.identity.cases import CASES, PARTS, Case
from fgm.utils.records import Measurement

Row = dict[str, Any]
MIXTURES = {"l_1": (1.0, 0.0), "l_2": (0.0, 1.0), "fgm": (1.0, 1.0), "sid": (-0.4, 1.0)}  # weights of L_1 and L_2


def measurements(result: Any, case: Case) -> list[Measurement]:
    """Of a runs.Result; what is not finite was lost in noise, and is left out."""
    known = "v_theta in closed form" if case.affine else f"an online network of {case.reference} turns as v_theta"
    protocol = f"{known}; inner products over pairs of {PARTS} parts of the draws"
    values = {"fit_error": result.fit_error, "covered": result.covered}
    for name, weights in MIXTURES.items():
        c = result.comparison
        values |= {
            f"cosine_{name}": c.cosine(*weights),
            f"norm_{name}": c.norm(*weights),
            f"gap_{name}": c.gap(*weights),
        }
    values |= {"best_lambda_1": result.comparison.best_lambda_1, "noise": result.noise}
    n = -(-case.draws // PARTS) * PARTS
    return [Measurement(k, v, n, protocol, 1, "raw") for k, v in values.items() if math.isfinite(v)]


@dataclass(frozen=True)
class Cell:
    """A case after some turns, of all seeds; turns is None for v_theta itself."""

    case: str
    turns: int | None
    rows: list[Row]

    def values(self, metric: str) -> list[float]:
        return [r["value"] for row in self.rows for r in row["results"] if r["metric"] == metric]

    def mean(self, metric: str) -> float:
        return fmean(self.values(metric) or [math.nan])

    def angles(self, mixture: str) -> list[float]:
        """Degrees between the mixture's gradient and the reference's."""
        return [degrees(value) for value in self.values(f"cosine_{mixture}")]


def degrees(cosine: float) -> float:
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def newest(rows: Sequence[Row]) -> list[Row]:
    """Of each case its last definition, and of each cell and seed the last row."""
    last = {row["case"]: row["study_digest"] for row in rows}
    alike = [row for row in rows if row["study_digest"] == last[row["case"]]]
    return list({(row["case"], row["seed"], row["turns"]): row for row in alike}.values())


def cells_of(rows: Sequence[Row]) -> dict[str, list[Cell]]:
    """Case -> its cells by turns, v_theta itself at the end; cases in the order of cases.py."""
    told = {row["case"] for row in rows}
    found: dict[str, dict[int | None, list[Row]]] = {case: {} for case in CASES if case in told}
    for row in newest(rows):
        found[row["case"]].setdefault(row["turns"], []).append(row)
    return {case: [Cell(case, turns, of[turns]) for turns in sorted(of, key=last_none)] for case, of in found.items()}


def last_none(turns: int | None) -> float:
    return math.inf if turns is None else turns


def crossing(fit_errors: Sequence[float], full: Sequence[float], l_2: Sequence[float]) -> float | None:
    """The fit error above which L_1 harms: angles of L_1 + L_2 and L_2 by fit error, and where they first are equal.

    From the best fit upwards; between two values linear in the logarithm. None where they are not.
    """
    told = sorted((error, a - b) for error, a, b in zip(fit_errors, full, l_2, strict=True) if error > 0)
    for (x, below), (y, above) in pairwise(told):
        if below < 0 <= above:
            share = below / (below - above)
            return math.exp((1 - share) * math.log(x) + share * math.log(y))
    return None


def harm(cells: Sequence[Cell]) -> tuple[float, float]:
    """Degrees by which L_1 turns the gradient away at most, and brings it nearer at most; means over the seeds."""
    known = [cell for cell in cells if cell.angles("fgm") and cell.angles("l_2")]
    by = [fmean(cell.angles("fgm")) - fmean(cell.angles("l_2")) for cell in known] or [0.0]
    return max(0.0, *by), max(0.0, *(-each for each in by))


def crossings(cells: Sequence[Cell]) -> list[float]:
    """Of each seed of a case, where there is one."""
    seeds = sorted({row["seed"] for cell in cells for row in cell.rows})
    return [found for seed in seeds if (found := crossing(*columns(cells, seed))) is not None]


def columns(cells: Sequence[Cell], seed: int) -> tuple[list[float], list[float], list[float]]:
    of_seed = [Cell(p.case, p.turns, [row for row in p.rows if row["seed"] == seed]) for p in cells]
    full = [p for p in of_seed if p.values("cosine_fgm") and p.values("cosine_l_2")]
    l_2 = [p.angles("l_2")[0] for p in full]
    return [p.mean("fit_error") for p in full], [p.angles("fgm")[0] for p in full], l_2
