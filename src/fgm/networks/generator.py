"""A velocity network used as a generator: its x_0-prediction at one fixed time t*, or at a few.

    x    = c_in z,     z ~ N(0, I)
    g(z) = (sigma'_{t*} x - sigma_{t*} v(x, t*)) / kappa_{t*}          on the rectified path: x - t* v(x, t*)

(arXiv 2410.19310, section 5; paths.py derives the formula for a general path.) With the teacher's weights this is the
teacher's posterior mean at t*; with t* = 1 and c_in = 1 on the rectified path it is one Euler step of the teacher's ODE.

The input scale c_in is one of

    one        1: z stands for x_1
    t_star     sigma_{t*}: the noise of x_{t*} around x_0 = 0 (SiD and DMD2 in EDM's units)
    variance   sqrt(alpha_{t*}^2 data_std^2 + sigma_{t*}^2): the standard deviation of x_{t*} itself

A generator of k steps uses the times t*_i = t* (k + 1 - i) / k. Between two steps, x_0 goes back to the path with new eps:

    x_0^1 = g(z),     x_{t*_i} = alpha x_0^{i-1} + sigma eps_{i-1},     x_0^i = x_0-prediction of x_{t*_i} at t*_i

The result after any number of steps is an x_0, and only the last step is differentiated (SiD-LSG's sampler, arXiv
2406.01561; SiD-DiT, arXiv 2509.25127, trains four steps from t* = 1; DMD2's backward simulation, arXiv 2405.14867).
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
    """Maps noise z (batch, *shape) and conditions to samples x_0 (batch, *shape).

    Args:
        net: a velocity network; its weights are the generator's.
        path: the path on which net was trained.
        t_star: the time of the first step.
        c_in: the input scale, see above.
        data_std: standard deviation of the data, for c_in = variance.
        steps: k.

    Attributes:
        times: t*_1 > ... > t*_k.
        nfe: network evaluations per sample, k.
        renoisings: noises that a sample needs besides z, k - 1.
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
        self.net, self.path = net, path
        self.c_in = input_scale(path, t_star, c_in, data_std)
        self.times, self.nfe, self.renoisings = step_times(t_star, steps), steps, steps - 1

    def forward(self, z: Tensor, condition: Tensor | None = None, eps: Tensor | None = None) -> Tensor:
        """Return the x_0 after one step and one more for each noise.

        Args:
            z: (batch, *shape) standard normal.
            condition: (batch, ...) or None.
            eps: (batch, 0 to k - 1, *shape) standard normal; None only for a generator of one step.

        Raises:
            ValueError: eps is missing for a generator of several steps, or has more than k - 1 noises.
        """
        if (eps is None and self.renoisings) or (eps is not None and eps.shape[1] > self.renoisings):
            given = "none" if eps is None else eps.shape[1]
            raise ValueError(f"a generator of {self.nfe} steps takes up to {self.renoisings} noises, but got {given}")
        x, noises = self.c_in * z, [] if eps is None else list(eps.unbind(1))
        for noise, time, next_time in zip(noises, self.times, self.times[1:], strict=False):
            with torch.no_grad():
                x_0 = self.predict_x_0(x, time, condition)
            x, _ = self.path.interpolate(x_0, noise, z.new_tensor(next_time))
        return self.predict_x_0(x, self.times[len(noises)], condition)

    def predict_x_0(self, x_t: Tensor, time: float, condition: Tensor | None) -> Tensor:
        t = torch.full((len(x_t),), time, device=x_t.device, dtype=x_t.dtype)
        return self.path.x_0_from_velocity(x_t, self.net(x_t, t, condition), t)

    def adapter_active(self) -> AbstractContextManager[None]:
        """See VelocityModel.adapter_active."""
        return self.net.adapter_active()


def step_times(t_star: float, steps: int) -> list[float]:
    """Return t*_1 > ... > t*_k."""
    return [t_star * ((steps - i) / steps) for i in range(steps)]


def input_scale(path: ProbabilityPath, t_star: float, c_in: InputScale, data_std: float) -> float:
    """Return c_in as a number."""
    k = path.coefficients(torch.tensor(t_star, dtype=torch.float64))
    scales = {"one": 1.0, "t_star": k.sigma, "variance": (k.alpha**2 * data_std**2 + k.sigma**2).sqrt()}
    return float(scales[c_in])
