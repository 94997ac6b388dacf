"""A velocity network read as a generator: its x_0-prediction at a few fixed times, and at one above all.

    x    = c_in z,     z ~ N(0, I)
    g(z) = (sigma'_{t*} x - sigma_{t*} v(x, t*)) / kappa_{t*}          rectified path: x - t* v(x, t*)

(arXiv 2410.19310, section 5; the formula for a general path follows from paths.py.) With the teacher's weights this
is the teacher's posterior mean at t*, and for t* = 1, c_in = 1 on the rectified path one Euler step of its ODE.

The scale of the input, c_in:
    one        z stands for x_1
    t_star     sigma_{t*} z, the noise of x_{t*} around x_0 = 0 (SiD and DMD2 in EDM's units)
    variance   sqrt(alpha_{t*}^2 data_std^2 + sigma_{t*}^2) z, as large as x_{t*} itself

With k steps, the times are t*_i = t* (k + 1 - i) / k, and between two steps x_0 goes back onto the path with fresh eps:

    x_0^1 = g(z),     x_{t*_i} = alpha x_0^{i-1} + sigma eps_{i-1},     x_0^i = x_0-prediction of x_{t*_i} at t*_i

Any number of them from the first gives an x_0, and gradient flows through the last one alone (SiD-LSG's sampler, arXiv
2406.01561; SiD-DiT, arXiv 2509.25127, trains four steps from t* = 1 so; DMD2's backward simulation, arXiv 2405.14867).
"""

from contextlib import AbstractContextManager
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from fgm.flow.paths import ProbabilityPath
from fgm.networks import VelocityModel
from fgm.utils.validation import validated

InputScale = Literal["one", "t_star", "variance"]


@validated
class FewStepGenerator(nn.Module):
    """g(z, condition, eps) -> x_0, all batch first; of one step unless it is told more.

    Args:
        net: a velocity network; its weights are the generator's.
        path: the path on which net was trained.
        t_star: the time at which net is read first.
        c_in: the scale of the input, see above.
        data_std: standard deviation of the data, for c_in = variance.
        steps: k.

    Attributes:
        times: t*_1 > ... > t*_k.
        nfe: k.
        renoisings: k - 1, the noises that a sample takes besides z.
    """

    def __init__(
        self,
        net: VelocityModel,
        path: ProbabilityPath,
        t_star: Annotated[float, Field(gt=0, le=1)],
        c_in: InputScale = "t_star",
        data_std: PositiveFloat = 0.5,
        steps: PositiveInt = 1,
    ) -> None:
        super().__init__()
        if not 0 < t_star <= 1:
            raise ValueError(f"t_star = {t_star} is outside (0, 1]")
        if steps < 1:
            raise ValueError(f"steps = {steps} is below 1")
        self.net, self.path = net, path
        self.c_in = input_scale(path, t_star, c_in, data_std)
        self.times, self.nfe, self.renoisings = step_times(t_star, steps), steps, steps - 1

    def forward(self, z: Tensor, condition: Tensor | None = None, eps: Tensor | None = None) -> Tensor:
        """The x_0 after one step and one more for each row of eps (0 to k - 1, batch, *dims).

        Raises:
            ValueError: eps is missing for a generator of several steps, or holds more than k - 1 noises.
        """
        if (eps is None and self.renoisings) or (eps is not None and eps.shape[1] > self.renoisings):
            given = "none were given" if eps is None else f"{eps.shape[1]} were given"
            raise ValueError(f"a generator of {self.nfe} steps takes up to {self.renoisings} noises, and {given}")
        x, noises = self.c_in * z, [] if eps is None else list(eps.unbind(1))
        for i, noise in enumerate(noises):
            with torch.no_grad():
                x_0 = self.read(x, self.times[i], condition)
            x, _ = self.path.interpolate(x_0, noise, z.new_tensor(self.times[i + 1]))
        return self.read(x, self.times[len(noises)], condition)

    def read(self, x_t: Tensor, time: float, condition: Tensor | None) -> Tensor:
        """The x_0-prediction of x_t at one time."""
        t = torch.full((len(x_t),), time, device=x_t.device, dtype=x_t.dtype)
        return self.path.x_0_from_velocity(x_t, self.net(x_t, t, condition), t)

    def adapter_active(self) -> AbstractContextManager[None]:
        """As the network's, see VelocityModel."""
        return self.net.adapter_active()


def step_times(t_star: float, steps: int) -> list[float]:
    """t*_1 > ... > t*_k."""
    return [t_star * ((steps - i) / steps) for i in range(steps)]


def input_scale(path: ProbabilityPath, t_star: float, c_in: InputScale, data_std: float) -> float:
    """c_in as a number."""
    k = path.coefficients(torch.tensor(t_star, dtype=torch.float64))
    scales = {"one": 1.0, "t_star": k.sigma, "variance": (k.alpha**2 * data_std**2 + k.sigma**2).sqrt()}
    if c_in not in scales:
        raise ValueError(f"c_in = {c_in!r} is none of {', '.join(scales)}")
    return float(scales[c_in])
