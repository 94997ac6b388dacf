"""Pre-training of a teacher: E |v(x_t, t, condition) - c|^2 over data, noise and time (arXiv 2210.02747).

Logged scalars:
    loss           flow-matching loss of the batch, mean over dims
    grad_norm      L2 norm of the gradient before clipping
    skipped        updates left out because the gradient was not finite
    images_seen    training images used so far, over all devices
"""

from typing import Annotated

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from fgm import losses
from fgm.evaluation.sampling import Source, many_step
from fgm.training.descend import Descent
from fgm.training.ema import frozen_copy, update_ema
from fgm.training.optimizers import scheduled
from fgm.training.setting import Setting


class FlowMatching(LightningModule):
    """Fits setting.net to setting.data.

    Args:
        setting: the pieces, see Setting.
        null_share: share of labels replaced by the null class, so that guidance is possible.
        steps: numbers of Euler steps with which the result is measured.
    """

    exported = "teacher"

    def __init__(self, setting: Setting, null_share: Annotated[float, "[0, 1)"] = 0.0, steps: tuple[int, ...] = (50, 8)) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.setting, self.null_share, self.steps = setting, null_share, steps
        self.net, self.ema = setting.net, frozen_copy(setting.net)
        self.descent = Descent("teacher", setting.clip)
        self.register_buffer("cycle", torch.zeros((), dtype=torch.int64))

    def configure_optimizers(self):
        optimizer = self.setting.optimizer(self.net)
        return [optimizer], [scheduled(optimizer, self.setting.cycles, self.setting.warmup, self.setting.decay)]

    def training_step(self, batch: Tensor) -> None:
        del batch
        loss = self.loss(int(self.cycle))
        norm = self.descent(self, self.optimizers(), loss, counted=True)
        self.lr_schedulers().step()
        update_ema(self.ema, self.net, self.setting.ema_decay)
        self.cycle += 1
        self.report(loss.detach(), norm)

    def loss(self, cycle: int) -> Tensor:
        """The batch's mean of |v - c|^2."""
        s, noise = self.setting, self.setting.stream("teacher", self.global_rank, cycle)
        x_0, condition = s.data.draw(s.batch_size, noise)
        if condition is not None:
            dropped = torch.rand(len(x_0), generator=noise) < self.null_share
            condition = condition.masked_fill(dropped, s.data.num_classes).to(self.device)
        x_t, c, t = s.noisy(x_0.to(self.device, self.dtype), s.time, noise)
        return losses.flow_matching(self.net(x_t, t, condition), c).mean()

    def report(self, loss: Tensor, norm: Tensor) -> None:
        if int(self.cycle) % self.trainer.log_every_n_steps == 0:
            scalars = {"loss": loss, "grad_norm": norm, "skipped": float(self.descent.skipped)}
            self.log_dict(scalars | {"images_seen": float(self.images_seen)})

    @property
    def images_seen(self) -> int:
        return int(self.cycle) * self.setting.batch_size * self.trainer.world_size

    def sources(self) -> list[Source]:
        """What to measure, the first one during training too."""
        return [many_step(self.ema, self.setting.path, steps) for steps in self.steps]

    def export(self) -> nn.Module:
        return self.ema
