"""A velocity network read as a many-step generator: its probability-flow ODE from z to x_0."""

from torch import Tensor, nn

from fgm.paths import Path
from fgm.solvers import EULER, Field, Solver, TimeGrid, integrate, trajectory


class OdeSampler(nn.Module):
    """Called like OneStepGenerator: (z, condition) -> x_0, all (batch, *dims).

    Attributes:
        nfe: network evaluations a sample.
    """

    def __init__(self, net: nn.Module, path: Path, grid: TimeGrid, solver: Solver = EULER) -> None:
        super().__init__()
        self.net, self.path, self.grid, self.solver = net, path, grid, solver
        self.nfe = grid.steps * self.solver.nfe

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return integrate(self.field(condition), self.path.prior(z), self.grid.times(z), self.solver)

    def trajectory(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """All states, (steps + 1, batch, *dims)."""
        return trajectory(self.field(condition), self.path.prior(z), self.grid.times(z), self.solver)

    def field(self, condition: Tensor | None) -> Field:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return self.net(x, t.expand(len(x)), condition)

        return velocity

    def extra_repr(self) -> str:
        return f"nfe={self.nfe}"
