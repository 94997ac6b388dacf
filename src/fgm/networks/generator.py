"""A velocity network read as a one-step generator: its x_0-prediction at one fixed time t*.

    x   = c_in z,     z ~ N(0, I)
    g(z) = (sigma'_{t*} x - sigma_{t*} v(x, t*)) / kappa_{t*}          rectified path: x - t* v(x, t*)

(arXiv 2410.19310, section 5; the formula for a general path follows from paths.py.) With the teacher's weights this
is the teacher's posterior mean at t*, and for t* = 1, c_in = 1 on the rectified path one Euler step of its ODE.

The scale of the input, c_in:
    one        z stands for x_1
    t_star     sigma_{t*} z, the noise of x_{t*} around x_0 = 0 (SiD and DMD2 in EDM's units)
    variance   sqrt(alpha_{t*}^2 data_std^2 + sigma_{t*}^2) z, as large as x_{t*} itself
"""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from fgm.paths import Path

InputScale = Literal["one", "t_star", "variance"]


class OneStepGenerator(nn.Module):
    """g(z, condition) -> x_0, all (batch, *dims).

    Args:
        net: a velocity network; its weights are the generator's.
        path: the path on which net was trained.
        t_star: the time at which net is read.
        c_in: the scale of the input, see above.
        data_std: standard deviation of the data, for c_in = variance.
    """

    def __init__(
        self,
        net: nn.Module,
        path: Path,
        t_star: Annotated[float, "(0, 1]"] = 0.97,
        c_in: InputScale = "t_star",
        data_std: Annotated[float, "(0, inf)"] = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < t_star <= 1:
            raise ValueError(f"t_star = {t_star} is outside (0, 1]")
        self.net, self.path, self.t_star, self.nfe = net, path, t_star, 1
        self.c_in = input_scale(path, t_star, c_in, data_std)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        x, t = self.c_in * z, torch.full((len(z),), self.t_star, device=z.device, dtype=z.dtype)
        return self.path.x_0_from_velocity(x, self.net(x, t, condition), t)


def input_scale(path: Path, t_star: float, c_in: InputScale, data_std: float) -> float:
    """c_in as a number."""
    k = path.coefficients(torch.tensor(t_star, dtype=torch.float64))
    scales = {"one": 1.0, "t_star": k.sigma, "variance": (k.alpha**2 * data_std**2 + k.sigma**2).sqrt()}
    if c_in not in scales:
        raise ValueError(f"c_in = {c_in!r} is none of {', '.join(scales)}")
    return float(scales[c_in])
