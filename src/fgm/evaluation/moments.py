"""Mean and covariance of features, and the files that hold them.

The layout is EDM's: an npz with mu (d,) and sigma (d, d), unbiased, float64. Ours adds n, where the reader of another
project finds what it looks for and ours learns how far to trust it. Nothing in a file is executed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from fgm.utils.errors import UserError


class Gaussian(Protocol):
    """What a Fréchet distance needs: mean (d,), covariance (d, d), and n, or None where it is not known."""

    @property
    def n(self) -> int | None: ...
    @property
    def mean(self) -> Tensor: ...
    @property
    def covariance(self) -> Tensor: ...


@dataclass(frozen=True)
class Moments:
    """A Gaussian read from a file."""

    n: int | None
    mean: Tensor
    covariance: Tensor


def save_moments(moments: Gaussian, path: Path | str) -> None:
    """Write mu, sigma and n."""
    arrays = {"mu": moments.mean.numpy(), "sigma": moments.covariance.numpy()}
    if moments.n is not None:
        arrays["n"] = np.array(moments.n)
    with Path(path).open("wb") as file:
        np.savez(file, **arrays)


def load_moments(path: Path | str, dim: int) -> Moments:
    """The moments of dim features.

    Raises:
        UserError: no such file, another layout, another dimension, or values that are not finite.
    """
    arrays = read_arrays(Path(path))
    mu, sigma = arrays["mu"], arrays["sigma"]
    if mu.shape != (dim,) or sigma.shape != (dim, dim):
        raise UserError(
            f"{path} holds mu {mu.shape} and sigma {sigma.shape}, and the extractor gives {dim} features: "
            "take the reference that was made with this extractor"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path} holds values that are not finite: make the reference again")
    n = int(arrays["n"]) if "n" in arrays else None
    return Moments(n, torch.from_numpy(mu).double(), torch.from_numpy(sigma).double())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """mu, sigma and, where it is there, n."""
    if not path.is_file():
        raise UserError(f"there is no reference file {path}: give one in EDM's layout (npz with mu and sigma), or data")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("mu", "sigma", "n") if key in file}
    except (ValueError, OSError, BadZipFile, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no npz of plain arrays: give a reference file in EDM's layout") from error
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(f"{path} has no mu and sigma: give a reference file in EDM's layout")
    return arrays
