"""Plots: image grids with a named row per sampler and captions, scatter plots of points, and a run's curves."""

import math
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from textwrap import fill

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from fgm.utils.records import read_metrics

INK, POINT = "#1a1a1a", "#2b6cb0"
NOT_PLOTTED = ("epoch", "step", "images_seen")
Curve = list[tuple[int, float]]  # training step, value


def image_rows(rows: dict[str, Tensor], columns: int) -> Figure:
    """Draw a row of the first `columns` images for each name -> images (n, c, h, w) in [-1, 1]."""
    figure = Figure(figsize=(columns * 0.6 + 1.6, len(rows) * 0.66))
    axes = figure.subplots(len(rows), 1, squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
        draw_strip(axis, name, images[:columns], columns)
    figure.subplots_adjust(left=1.6 / (columns * 0.6 + 1.6), right=0.995, top=0.99, bottom=0.01, hspace=0.06)
    return figure


def captioned_rows(rows: dict[str, Tensor], captions: Sequence[str], columns: int) -> Figure:
    """Draw rows of images as image_rows does, wrapped after `columns`, with a caption below each column."""
    starts = range(0, len(captions), columns)
    ratios = ([1.0] * len(rows) + [0.45]) * len(starts)
    width, height = 1.2 * columns + 1.2, 1.2 * sum(ratios)
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(len(ratios), 1, height_ratios=ratios, squeeze=False)
    strips = iter(axes[:, 0])
    for start in starts:
        for name, images in rows.items():
            axis = next(strips)
            draw_strip(axis, name, images[start : start + columns], columns)
        for i, caption in enumerate(captions[start : start + columns]):
            x, place = (i + 0.5) / columns * axis.get_xlim()[1], axis.get_xaxis_transform()
            axis.text(x, -0.08, fill(caption, 22), transform=place, ha="center", va="top", fontsize=7, color=INK)
        next(strips).set_axis_off()
    figure.subplots_adjust(left=1.15 / width, right=0.995, top=0.995, bottom=0, hspace=0.04)
    return figure


def draw_strip(axis: Axes, name: str, images: Tensor, columns: int) -> None:
    """Draw images side by side after their name, padded with white."""
    white = torch.ones_like(images[:1]).expand(columns - len(images), *images.shape[1:])
    show(axis, tiled(torch.cat([images, white]), columns))
    axis.set_ylabel(fill(name, 14), rotation=0, ha="right", va="center", fontsize=8, color=INK)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def tiled(images: Tensor, columns: int) -> Tensor:
    """Return one picture in [0, 1], (height, width[, 3]), of images in [-1, 1], with white seams."""
    picture = make_grid((images.clamp(-1, 1) + 1) / 2, columns, padding=1, pad_value=1.0)
    return picture[0] if images.shape[1] == 1 else picture.permute(1, 2, 0)


def show(axis: Axes, picture: Tensor) -> None:
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def scatter_plots(sets: dict[str, Tensor], points: int = 4000) -> Figure:
    """Draw name -> points (n, 2) side by side on equal axes."""
    figure = Figure(figsize=(2.6 * len(sets), 2.9))
    axes = figure.subplots(1, len(sets), sharex=True, sharey=True, squeeze=False)
    limit = 1.25 * max(1e-3, list(sets.values())[-1].abs().max().item())
    for axis, (name, x) in zip(axes[0], sets.items(), strict=True):
        axis.scatter(x[:points, 0], x[:points, 1], s=1.2, color=POINT, alpha=0.35, linewidths=0)
        axis.set(title=name, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
        axis.title.set(fontsize=9, color=INK)
    figure.tight_layout()
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def save_rows(sets: dict[str, Tensor], path: Path, captions: Sequence[str] | None = None, columns: int = 20) -> None:
    """Save scatter plots of points (n, 2), or rows of images, six to a row if they have captions."""
    if next(iter(sets.values())).ndim == 2:
        save_figure(scatter_plots(sets), path)
    else:
        save_figure(captioned_rows(sets, captions, 6) if captions else image_rows(sets, columns), path)


def save_square(x_0: Tensor, path: Path) -> None:
    """Save all samples as a square of images or one scatter plot."""
    if x_0.ndim == 2:
        save_figure(scatter_plots({f"{len(x_0)} samples": x_0}, len(x_0)), path)
        return
    columns = math.ceil(math.sqrt(len(x_0)))
    picture, side = tiled(x_0, columns), 0.6 * columns
    figure = Figure(figsize=(side, side * picture.shape[0] / picture.shape[1]))
    axis = figure.subplots()
    show(axis, picture)
    axis.set_axis_off()
    figure.subplots_adjust(left=0, right=1, top=1, bottom=0)
    save_figure(figure, path)


def changing_scalars(file: Path) -> dict[str, Curve]:
    """Return the finite values of every scalar of a metrics.csv that changed, eval/... first."""
    curves: dict[str, Curve] = {}
    for row in read_metrics(file):
        for name in row.keys() - set(NOT_PLOTTED):
            if row[name] and isfinite(value := float(row[name])):
                curves.setdefault(name, []).append((int(row["step"]) + 1, value))
    changing = {name: curve for name, curve in curves.items() if len({value for _, value in curve}) > 1}
    return dict(sorted(changing.items(), key=lambda item: (not item[0].startswith("eval/"), item[0])))


def draw_curves(curves: dict[str, Curve], columns: int = 4) -> Figure:
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(2.5 * columns, 1.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(curves) :]:
        axis.set_axis_off()
    for axis, (name, curve) in zip(axes, curves.items(), strict=False):
        axis.plot(*zip(*curve, strict=True), color=POINT, linewidth=1.2, marker=".", markersize=3)
        axis.set_title(name, fontsize=8, color=INK)
        axis.set_xlabel("steps", fontsize=7, color=INK)
        axis.tick_params(labelsize=7, colors=INK)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def save_curves(file: Path, path: Path) -> None:
    """Save the curves of a metrics.csv, if any scalar changed."""
    if curves := changing_scalars(file):
        save_figure(draw_curves(curves), path)
