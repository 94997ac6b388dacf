"""Pictures: a grid of images with one named row per source, and a scatter plot per source for points."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

INK, POINT = "#1a1a1a", "#2b6cb0"


def image_rows(rows: dict[str, Tensor], columns: int) -> Figure:
    """rows: name -> images (n, c, h, w) in [-1, 1], of which the first `columns` are shown."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(columns * 0.62 + 2.2, len(rows) * 0.78), squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
        strip = images[:columns].clamp(-1, 1).permute(2, 0, 3, 1).flatten(1, 2)  # (h, n w, c)
        axis.imshow(strip, cmap="gray", vmin=-1, vmax=1, interpolation="nearest", aspect="equal")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, color=INK)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    figure.subplots_adjust(left=0.24, right=0.995, top=0.99, bottom=0.01, hspace=0.08)
    return figure


def scatter_panels(sets: dict[str, Tensor], points: int = 4000) -> Figure:
    """sets: name -> points (n, 2), side by side on equal axes."""
    figure, axes = plt.subplots(1, len(sets), figsize=(2.6 * len(sets), 2.9), sharex=True, sharey=True, squeeze=False)
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
    plt.close(figure)


def picture(sets: dict[str, Tensor], path: Path, columns: int = 20) -> None:
    """The picture that suits the samples: a scatter plot for (n, 2), a grid for images."""
    first = next(iter(sets.values()))
    save(scatter_panels(sets) if first.ndim == 2 else image_rows(sets, columns), path)
