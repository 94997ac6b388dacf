"""The velocity of a Gaussian mixture in closed form, as a teacher without weights, training or error."""

from torch import Tensor

from fgm.flow.analytic import GaussianMixture
from fgm.flow.paths import ProbabilityPath
from fgm.networks import VelocityModel
from fgm.utils.validation import validated


@validated
class GaussianMixtureVelocity(VelocityModel):
    """v(x_t, t) = E[c | x_t] for mixture data on a path, x_t (batch, dim); a condition is ignored."""

    path: ProbabilityPath

    def __init__(self, mixture: GaussianMixture, path: ProbabilityPath) -> None:
        super().__init__()
        self.path, self.shape, self.num_classes = path, tuple(mixture.means.shape[1:]), 0
        for name in ("weights", "means", "stds"):
            self.register_buffer(name, getattr(mixture, name))

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        buffers = (self.get_buffer(name).to(x_t.dtype) for name in ("weights", "means", "stds"))
        return GaussianMixture(*buffers).velocity(x_t, t, self.path)
