"""The curves of a run: every scalar of its metrics.csv that moved, against cycles, an axis each.

What is measured in training (eval/...) stands first; what training itself logs follows.
"""

from math import isfinite
from pathlib import Path

from matplotlib.figure import Figure

from fgm.evaluation.pictures import INK, POINT, save
from fgm.utils.records import read_metrics

Curve = list[tuple[int, float]]  # cycle, value
BESIDE = ("epoch", "step", "images_seen")


def scalars_that_moved(file: Path) -> dict[str, Curve]:
    """Finite values only, and no scalar that stayed as it was; none of a run that logged nothing."""
    curves: dict[str, Curve] = {}
    for row in read_metrics(file):
        for name in row.keys() - set(BESIDE):
            if row[name] and isfinite(value := float(row[name])):
                curves.setdefault(name, []).append((int(row["step"]) + 1, value))
    moved = {name: curve for name, curve in curves.items() if len({value for _, value in curve}) > 1}
    return dict(sorted(moved.items(), key=lambda item: (not item[0].startswith("eval/"), item[0])))


def draw_curves(curves: dict[str, Curve], columns: int = 4) -> Figure:
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(2.5 * columns, 1.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, curve) in zip(axes, curves.items(), strict=False):
        axis.set_axis_on()
        axis.plot(*zip(*curve, strict=True), color=POINT, linewidth=1.2, marker=".", markersize=3)
        axis.set_title(name, fontsize=8, color=INK)
        axis.set_xlabel("cycles", fontsize=7, color=INK)
        axis.tick_params(labelsize=7, colors=INK)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def picture_of_curves(file: Path, path: Path) -> None:
    """Nothing where nothing moved."""
    if curves := scalars_that_moved(file):
        save(draw_curves(curves), path)
