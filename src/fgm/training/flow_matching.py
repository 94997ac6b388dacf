"""Pre-training of a teacher: E |v(x_t, t, condition) - c|^2 over data, noise and time (arXiv 2210.02747).

If the config names a teacher, its weights are trained further; otherwise training starts from a fresh network.

Logged: `loss`, the mean over the batch and dims; `grad_norm`, the L2 norm before clipping; `skipped`, updates whose gradient was
not finite; `images_seen`, training images used so far, over all devices.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.optim import Optimizer

from fgm.data import Data
from fgm.evaluation.sampling import Sampler, ode_sampler
from fgm.flow import losses
from fgm.flow.paths import ProbabilityPath, expand_like
from fgm.flow.times import TimestepDensity
from fgm.networks import VelocityModel
from fgm.networks.guidance import with_guidance
from fgm.training.config import TrainingConfig
from fgm.training.initialize import initialize
from fgm.training.memory import VelocityAt
from fgm.training.module import Loss, TrainingModule
from fgm.utils.validation import validated


@validated
class FlowMatching(TrainingModule):
    """Fit a network to data.

    Args:
        data, path, times, optimizer, config, seed: as in Distillation.
        network: makes a fresh velocity network.
        teacher: a flow model to train further, instead of a fresh network.
        label_dropout: share of labels replaced by the null class, which makes guidance possible.
        steps: numbers of Euler steps with which the result is measured.
        guidance: scale of classifier-free guidance with which it is measured; 1 for none.
    """

    exported = "teacher"
    updated = ("teacher",)

    def __init__(
        self,
        data: Data,
        path: ProbabilityPath,
        times: TimestepDensity,
        optimizer: Callable[[nn.Module], Optimizer],
        config: TrainingConfig,
        network: Callable[[], VelocityModel] | None = None,
        teacher: VelocityModel | None = None,
        seed: int = 0,
        *,
        label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        steps: tuple[int, ...] = (50, 8),
        guidance: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(config, data, path, times, seed)
        self.label_dropout, self.steps, self.guidance, self.make_optimizer = label_dropout, steps, guidance, optimizer
        self.net = initialize("teacher" if teacher else "random", self, teacher, network)
        self.average(self.net)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the averaged network's velocity."""
        return self.ema(x_t, t, condition)

    def configure_optimizers(self):
        return [self.scheduled(self.make_optimizer, self.net)]

    def training_step(self, batch: Tensor) -> None:
        del batch
        rng, scalars = self.rng("teacher", int(self.step)), {}
        x_0, condition = self.draw_data(self.data, rng)
        if condition is not None:
            dropped = torch.rand(len(x_0), generator=rng, device=rng.device) < self.label_dropout
            condition = torch.where(expand_like(dropped, condition), self.net.unconditional(condition), condition)
        x_t, c, t = self.noised(x_0, self.times, rng)
        norm = self.update("teacher", self.in_parts(self.loss, scalars, x_t, c, t, condition))
        self.update_averages(self.net)
        self.finish_step(scalars | {"grad_norm": norm})

    def loss(self, x_t: Tensor, c: Tensor, t: Tensor, condition: Tensor | None) -> Loss:
        """Return the mean of |v - c|^2, and what to log."""
        loss = losses.flow_matching(VelocityAt(self.net, t, condition)(x_t), c).mean()
        return loss, {"loss": loss}

    def networks(self) -> list[VelocityModel]:
        return [self.net, *self.averages.values()]

    def samplers(self) -> list[Sampler]:
        """Return the averaged network's ODE, and that of further averages at the first number of steps."""
        nets = {name: with_guidance(ema, self.guidance) for name, ema in self.averages.items()}
        exported = nets.pop("ema")
        further = [ode_sampler(net, self.path, self.steps[0], name) for name, net in nets.items()]
        return [*(ode_sampler(exported, self.path, steps) for steps in self.steps), *further]

    def result(self) -> nn.Module:
        return self.ema
