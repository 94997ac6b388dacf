"""Two gradients from noisy means of them: cosine, relative norm and gap, without bias from the noise.

The draws come in m parts of equal size. With g_i, h_i the means of two gradients over part i, <E g, E h> is estimated
by the mean of <g_i, h_j> over i != j, whose expectation it is, since parts are independent; cosines, norms and gaps are
made of such products. How far two halves of the draws are apart, `noise` tells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BEYOND = 1.02  # a cosine that noise has moved so far above 1 says nothing


def products(parts: Sequence[Tensor]) -> Tensor:
    """Parts (k, p) -> (k, k), unbiased inner products of the k means: over pairs of different parts alone."""
    total, same = torch.zeros_like(parts[0], dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for part in parts:
        total += part
        same = same + (part.double() @ part.double().T).cpu()
    return ((total @ total.T).cpu() - same) / (len(parts) * (len(parts) - 1))


def noise(parts: Sequence[Tensor]) -> float:
    """Cosine of the means over one half of the parts, (p,) each, and over the other."""
    halves = [torch.stack([part.double() for part in parts[i::2]]).mean(0) for i in range(2)]
    return float(torch.cosine_similarity(*halves, dim=0))


@dataclass(frozen=True)
class Comparison:
    """products (3, 3) of grad L_1, grad L_2 and the reference gradient; a mixture is its weights of L_1 and L_2."""

    products: Tensor

    def product(self, a: Sequence[float], b: Sequence[float]) -> float:
        left, right = (torch.tensor(vector, dtype=torch.float64) for vector in (a, b))
        return float(left @ self.products @ right)

    def norm(self, l_1: float, l_2: float) -> float:
        """Over the reference's; nan where noise leaves none."""
        return root(self.product((l_1, l_2, 0), (l_1, l_2, 0)) / self.product((0, 0, 1), (0, 0, 1)))

    def cosine(self, l_1: float, l_2: float) -> float:
        """nan where noise leaves none, or takes it beyond what a cosine can be."""
        along = self.product((l_1, l_2, 0), (0, 0, 1)) / self.product((0, 0, 1), (0, 0, 1))
        size = self.norm(l_1, l_2)
        found = along / size if size else math.nan
        return found if abs(found) < BEYOND else math.nan

    def gap(self, l_1: float, l_2: float) -> float:
        """The norm of the difference, over the reference's; 0 where noise hides it."""
        missed = self.product((l_1, l_2, -1), (l_1, l_2, -1)) / self.product((0, 0, 1), (0, 0, 1))
        return root(max(missed, 0.0))

    @property
    def best_lambda_1(self) -> float:
        """Of the mixture lambda_1 L_1 + L_2 whose direction is nearest; nan where there is none."""
        l_1, l_2 = torch.linalg.solve(self.products[:2, :2], self.products[:2, 2]).tolist()
        return l_1 / l_2 if l_2 > 0 else math.nan


def root(value: float) -> float:
    return math.sqrt(value) if value >= 0 else math.nan
