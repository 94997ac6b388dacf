"""Pictures: a grid of images with one named row per source, the same with captions, a scatter plot per source."""

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

INK, POINT = "#1a1a1a", "#2b6cb0"


def image_rows(rows: dict[str, Tensor], columns: int) -> Figure:
    """rows: name -> images (n, c, h, w) in [-1, 1], of which the first `columns` are shown."""
    figure = Figure(figsize=(columns * 0.6 + 1.6, len(rows) * 0.66))
    axes = figure.subplots(len(rows), 1, squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
        draw_strip(axis, name, images[:columns], columns)
    figure.subplots_adjust(left=1.6 / (columns * 0.6 + 1.6), right=0.995, top=0.99, bottom=0.01, hspace=0.06)
    return figure


def tiled(images: Tensor, columns: int) -> Tensor:
    """Images (n, c, h, w) in [-1, 1] as one picture in [0, 1], (height, width[, 3]), with white seams."""
    picture = make_grid((images.clamp(-1, 1) + 1) / 2, columns, padding=1, pad_value=1.0)
    return picture[0] if images.shape[1] == 1 else picture.permute(1, 2, 0)


def captioned_rows(rows: dict[str, Tensor], captions: Sequence[str], columns: int) -> Figure:
    """rows: name -> images (n, c, h, w), one a caption; broken after `columns`, with the captions below."""
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
        draw_captions(axis, captions[start : start + columns], columns)
        next(strips).set_axis_off()
    figure.subplots_adjust(left=1.15 / width, right=0.995, top=0.995, bottom=0, hspace=0.04)
    return figure


def draw_strip(axis: Axes, name: str, images: Tensor, columns: int) -> None:
    """Images side by side, white beyond the last one, and their name before them."""
    white = torch.ones_like(images[:1]).expand(columns - len(images), *images.shape[1:])
    axis.imshow(tiled(torch.cat([images, white]), columns), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_ylabel(fill(name, 14), rotation=0, ha="right", va="center", fontsize=8, color=INK)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def draw_captions(axis: Axes, captions: Sequence[str], columns: int) -> None:
    """Below the pictures of a strip."""
    for i, caption in enumerate(captions):
        x, place = (i + 0.5) / columns * axis.get_xlim()[1], axis.get_xaxis_transform()
        axis.text(x, -0.08, fill(caption, 22), transform=place, ha="center", va="top", fontsize=7, color=INK)


def captioned_grid(rows: dict[str, Tensor], captions: Sequence[str], path: Path) -> None:
    save(captioned_rows(rows, captions, 6), path)


def scatter_panels(sets: dict[str, Tensor], points: int = 4000) -> Figure:
    """sets: name -> points (n, 2), side by side on equal axes."""
    figure = Figure(figsize=(2.6 * len(sets), 2.9))
    axes = figure.subplots(1, len(sets), sharex=True, sharey=True, squeeze=False)
    limit = 1.25 * max(1e-3, list(sets.values())[-1].abs().max().item())
    for axis, (name, x) in zip(axes[0], sets.items(), strict=True):
        axis.scatter(x[:points, 0], x[:points, 1], s=1.2, color=POINT, alpha=0.35, linewidths=0)
        axis.set(title=name, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
        axis.title.set(fontsize=9, color=INK)
    figure.tight_layout()
    return figure


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def picture(sets: dict[str, Tensor], path: Path, columns: int = 20) -> None:
    """The picture that suits the samples: a scatter plot for (n, 2), a grid for images."""
    first = next(iter(sets.values()))
    save(scatter_panels(sets) if first.ndim == 2 else image_rows(sets, columns), path)


def gallery(x_0: Tensor, path: Path) -> None:
    """All samples: a square of images, or one scatter plot."""
    if x_0.ndim == 2:
        save(scatter_panels({f"{len(x_0)} samples": x_0}, len(x_0)), path)
        return
    columns = math.ceil(math.sqrt(len(x_0)))
    picture, side = tiled(x_0, columns), 0.6 * columns
    figure = Figure(figsize=(side, side * picture.shape[0] / picture.shape[1]))
    axis = figure.subplots()
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_axis_off()
    figure.subplots_adjust(left=0, right=1, top=1, bottom=0)
    save(figure, path)
