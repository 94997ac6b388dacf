"""Pre-training of a teacher: E |v(x_t, t, condition) - c|^2 over data, noise and time (arXiv 2210.02747).

A config's `teacher` node, if it has one, is the flow model that is trained on; else training begins with a fresh one.

Logged scalars:
    loss           flow-matching loss of the batch, mean over dims
    grad_norm      L2 norm of the gradient before clipping
    skipped        updates left out because the gradient was not finite
    images_seen    training images used so far, over all devices
"""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from fgm.evaluation.sampling import Sampler, ode_sampler
from fgm.flow import losses
from fgm.flow.paths import expand_like
from fgm.networks import VelocityModel
from fgm.networks.guidance import with_guidance
from fgm.teachers.edm2 import keep_weight_norm
from fgm.training.descend import Descent
from fgm.training.ema import update_ema
from fgm.training.initialise import initialised
from fgm.training.method import Method
from fgm.training.micro_batches import Summed, Told
from fgm.training.optimizers import scheduled
from fgm.training.setting import Setting
from fgm.utils.validation import validated


@validated
class FlowMatching(Method):
    """Fits setting.teacher's network, or setting.net where there is none, to setting.data.

    Args:
        setting: the pieces, see Setting.
        null_share: share of labels replaced by the null class, so that guidance is possible.
        steps: numbers of Euler steps with which the result is measured.
        guidance: scale of classifier-free guidance under which it is measured; 1 for none.
    """

    exported = "teacher"

    def __init__(
        self,
        setting: Setting,
        null_share: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        steps: tuple[int, ...] = (50, 8),
        guidance: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(setting)
        self.null_share, self.steps, self.guidance = null_share, steps, guidance
        self.net = initialised("teacher" if setting.teacher else "random", setting)
        self.average(self.net)
        self.descents = [Descent("teacher", 0, self.schedule.clip)]

    def configure_optimizers(self):
        optimizer = keep_weight_norm(self.setting.optimizer(self.net), self.net)
        return [optimizer], [scheduled(optimizer, self.schedule.cycles, self.schedule.warmup, self.schedule.decay)]

    def training_step(self, batch: Tensor) -> None:
        del batch
        parts = Summed(self.part, self.schedule.micro_batches, *self.drawn(int(self.cycle)))
        norm = self.descents[0](self, *parts.losses())
        update_ema(self.ema, self.net, self.schedule.ema_decay)
        self.report(parts.told | {"grad_norm": norm})

    def drawn(self, cycle: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x_t, c, t and conditions of a batch."""
        s, noise = self.setting, self.noise("teacher", cycle)
        x_0, condition = self.draw(s.data, noise)
        if condition is not None:
            dropped = torch.rand(len(x_0), generator=noise, device=noise.device) < self.null_share
            condition = torch.where(expand_like(dropped, condition), self.net.unconditional(condition), condition)
        return *s.noisy(x_0, s.time, noise), condition

    def part(self, x_t: Tensor, c: Tensor, t: Tensor, condition: Tensor | None) -> tuple[Tensor, Told]:
        """The mean of |v - c|^2."""
        loss = losses.flow_matching(self.net(x_t, t, condition).to(x_t.dtype), c).mean()
        return loss, {"loss": loss}

    def networks(self) -> list[VelocityModel]:
        return [self.net, self.ema]

    def sources(self) -> list[Sampler]:
        net = with_guidance(self.ema, self.guidance)
        return [ode_sampler(net, self.setting.path, steps) for steps in self.steps]

    def result(self) -> nn.Module:
        return self.ema
