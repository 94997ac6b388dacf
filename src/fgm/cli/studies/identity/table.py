"""The rows of experiments/identity/runs.jsonl as Markdown: a line for each case and number of turns."""

from collections.abc import Sequence
from statistics import fmean

from fgm.cli.studies.identity.rows import Cell, Row, cells_of, crossings, degrees, harm
from fgm.utils.markdown import mean_and_sd, table_head, table_row

ANGLES = {"L₁ + L₂": "fgm", "L₂": "l_2", "-0.4 L₁ + L₂": "sid", "L₁": "l_1"}
NORMS = {"norm L₁ + L₂": "norm_fgm", "norm L₂": "norm_l_2"}
HEAD = ["case", "turns", "fit error", *(f"{name}, °" for name in ANGLES), *NORMS, "best λ₁", "2 - 1/s", "seeds"]


def table_of_identity(rows: Sequence[Row]) -> list[str]:
    """Angles are of a mean gradient with the reference's, in degrees; norms are over the reference's."""
    title = "**identity**, the gradient of λ₁ L₁ + L₂ beside that of E|u - v_θ|², mean over seeds"
    cases = cells_of(rows)
    body = [line_of(cell) for cells in cases.values() for cell in cells]
    below = [line for case, cells in cases.items() for line in ("", told(case, cells))]
    return [title, "", *table_head(HEAD), *body, *below]


def line_of(cell: Cell) -> str:
    s = cell.mean("covered")
    cells = [
        cell.case, "v_θ itself" if cell.turns is None else str(cell.turns), mean_and_sd(cell.values("fit_error")),
        *(mean_and_sd(cell.angles(mixture)) for mixture in ANGLES.values()),
        *(mean_and_sd(cell.values(metric)) for metric in NORMS.values()),
        mean_and_sd(cell.values("best_lambda_1")), f"{2 - 1 / s:.3g}" if s > 0 else "", str(len(cell.rows)),
    ]  # fmt: skip
    return table_row(cells)


def told(case: str, cells: Sequence[Cell]) -> str:
    """Where L_1 harms and by how much, the protocol, the noise."""
    rows = [row for cell in cells for row in cell.rows]
    found, seeds, (away, nearer) = crossings(cells), len({row["seed"] for row in rows}), harm(cells)
    above = f" above a fit error of {mean_and_sd(found)} ({len(found)} of {seeds} seeds)" if found else ""
    first = rows[-1]["results"][0]
    noise = degrees(fmean(value for cell in cells for value in cell.values("noise")))
    return (
        f"{case}: L₁ harms{above or ' nowhere'}, by at most {away:.2g}°; it helps by up to {nearer:.2g}°. "
        f"{first['protocol']}, n = {first['n']}, whose halves are {noise:.2g}° apart; {rows[-1]['device']}."
    )
