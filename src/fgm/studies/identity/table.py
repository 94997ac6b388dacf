"""The rows of experiments/identity/runs.jsonl as Markdown: a line for each case and number of turns."""

from collections.abc import Sequence
from statistics import fmean

from fgm.markdown import mean_and_sd, table_head, table_row
from fgm.studies.identity.rows import Point, Row, crossings, degrees, harm, points_of

ANGLES = {"L₁ + L₂": "fgm", "L₂": "l_2", "-0.4 L₁ + L₂": "sid", "L₁": "l_1"}
NORMS = {"norm L₁ + L₂": "norm_fgm", "norm L₂": "norm_l_2"}
HEAD = ["case", "turns", "fit error", *(f"{name}, °" for name in ANGLES), *NORMS, "best λ₁", "2 - 1/s", "seeds"]


def table_of_identity(rows: Sequence[Row]) -> list[str]:
    """Angles are of a mean gradient with the reference's, in degrees; norms are over the reference's."""
    title = "**identity**, the gradient of λ₁ L₁ + L₂ beside that of E|u - v_θ|², mean over seeds"
    cases = points_of(rows)
    body = [line_of(point) for points in cases.values() for point in points]
    below = [line for case, points in cases.items() for line in ("", told(case, points))]
    return [title, "", *table_head(HEAD), *body, *below]


def line_of(point: Point) -> str:
    s = point.mean("covered")
    cells = [
        point.case, "v_θ itself" if point.turns is None else str(point.turns), mean_and_sd(point.values("fit_error")),
        *(mean_and_sd(point.angles(mixture)) for mixture in ANGLES.values()),
        *(mean_and_sd(point.values(metric)) for metric in NORMS.values()),
        mean_and_sd(point.values("best_lambda_1")), f"{2 - 1 / s:.3g}" if s > 0 else "", str(len(point.rows)),
    ]  # fmt: skip
    return table_row(cells)


def told(case: str, points: Sequence[Point]) -> str:
    """Where L_1 harms and by how much, the protocol, the noise."""
    rows = [row for point in points for row in point.rows]
    found, seeds, (away, nearer) = crossings(points), len({row["seed"] for row in rows}), harm(points)
    above = f" above a fit error of {mean_and_sd(found)} ({len(found)} of {seeds} seeds)" if found else ""
    first = rows[-1]["results"][0]
    noise = degrees(fmean(value for point in points for value in point.values("noise")))
    return (
        f"{case}: L₁ harms{above or ' nowhere'}, by at most {away:.2g}°; it helps by up to {nearer:.2g}°. "
        f"{first['protocol']}, n = {first['n']}, whose halves are {noise:.2g}° apart; {rows[-1]['device']}."
    )
