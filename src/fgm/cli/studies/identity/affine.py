"""A generator whose law is known: x_0 = W z + b ~ N(b, W W^T), and so v_theta, see analytic.affine_velocity."""

import torch
from torch import Tensor, nn

from fgm.cli.studies.identity.gradients import VelocityOf
from fgm.flow.analytic import affine_velocity
from fgm.flow.paths import ProbabilityPath
from fgm.training.setting import Setting

NARROW, OFF, UNEVEN = 0.3, 0.5, 0.3  # beside the data, in their standard deviations


class AffineGenerator(nn.Module):
    """x_0 = W z + b; condition is ignored."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        del condition
        return z @ self.weight.T + self.bias

    def law(self, path: ProbabilityPath, live: bool) -> VelocityOf:
        """v_theta, with the graph of W and b or without."""

        def velocity(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            del condition
            weight, bias = (p if live else p.detach() for p in (self.weight, self.bias))
            return affine_velocity(x_t, t, path, weight, bias)

        return velocity


def affine_start(setting: Setting) -> AffineGenerator:
    """Narrower than the data, uneven and beside their mean, by the seed: no symmetry makes a gradient vanish."""
    points = setting.data.reference(10_000, setting.stream("moments", 0, 0))
    noise = setting.stream("affine", 0, 0)
    mean, dim = points.mean(0), points.shape[1]
    std = (points - mean).std()
    weight = torch.eye(dim) + UNEVEN * torch.randn(dim, dim, generator=noise)
    return AffineGenerator(NARROW * std * weight, mean + OFF * std * torch.randn(dim, generator=noise))
