"""A velocity network read as a many-step generator: its probability-flow ODE from z to x_0."""

from torch import Tensor, nn

from fgm.flow.paths import ProbabilityPath
from fgm.flow.solvers import EULER, Field, Solver, even_times, integrate, trajectory


class OdeSampler(nn.Module):
    """Called like FewStepGenerator: (z, condition) -> x_0, all (batch, *dims). Its steps are even in t.

    Attributes:
        nfe: network evaluations a sample.
    """

    def __init__(self, net: nn.Module, path: ProbabilityPath, steps: int, solver: Solver = EULER) -> None:
        super().__init__()
        self.net, self.path, self.steps, self.solver = net, path, steps, solver
        self.nfe = steps * solver.nfe

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return integrate(self.field(condition), self.path.prior(z), self.times(z), self.solver)

    def trajectory(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """All states, (steps + 1, batch, *dims)."""
        return trajectory(self.field(condition), self.path.prior(z), self.times(z), self.solver)

    def times(self, like: Tensor) -> Tensor:
        return even_times(self.steps, self.path.t_min, like)

    def field(self, condition: Tensor | None) -> Field:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return self.net(x, t.expand(len(x)), condition)

        return velocity
