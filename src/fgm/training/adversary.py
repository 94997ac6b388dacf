"""A GAN term beside FGM's loss, for detail of high frequency: the discriminator's turn, and what the generator pays it.

    discriminator turn    softplus(-l(x_t)) of real x_0, plus softplus(l(x_t)) of generated ones, plus (r1_weight/2) R1
    generator turn        weight softplus(-l(x_t)), added to FGM's loss and through x_t alone

l is a discriminator's logits (networks/discriminator.py) on features of the online network or of the teacher, at fresh
t and eps. The discriminator turn follows the online turns and moves the heads alone, where DMD2 trains the online
network with them (arXiv 2405.14867); so its loss needs no weight of its own. R1 is taken at the features, as ADD does
(arXiv 2311.17042), or at x_t, through the whole network and twice.

Before from_cycle the term does not exist: nothing is drawn, and every network is what it would be without it.

Logged scalars, from from_cycle on:
    discriminator_loss    2 log 2 = 1.386 where real and generated cannot be told apart, 0 where they never err
    logit_real, logit_fake    mean logits of the discriminator turn; far apart means that it has won
    r1                    mean of R1, where r1_weight is not 0
    adversarial_loss      softplus(-l) of the generator turn, without weight
    discriminator_grad_norm    L2 norm before clipping
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from fgm.data import Data
from fgm.flow import losses
from fgm.flow.times import TimestepDensity
from fgm.networks import VelocityModel
from fgm.networks.discriminator import Discriminator, feature_widths, read_features
from fgm.networks.guidance import unwrap_guidance
from fgm.training.descend import Descent
from fgm.training.method import Method
from fgm.training.micro_batches import Summed, Told, rooted
from fgm.training.optimizers import scheduled
from fgm.training.real_data import RealImages
from fgm.training.setting import Setting
from fgm.utils.random import keyed_generator
from fgm.utils.validation import validated

Weight = NonNegativeFloat


@validated
class Adversary(nn.Module):
    """The discriminator of a distillation, and its two turns.

    Args:
        setting: of the distillation.
        online: its online network, whose features are read with features = online; else setting.teacher's.
        blocks: names of the submodules whose outputs are the features, a head on each.
        weight: of the generator's loss.
        width: of the heads' hidden layer.
        optimizer: of the heads; the setting's if None.
        from_cycle: the first cycle with a discriminator.
        time: density of t; the setting's if None.
        r1_weight: of the gradient penalty on real images; r1_at: the inputs by which the gradient is taken.
        data: real images; setting.data if None. Where they tell no condition, the discriminator sees none of either.
    """

    def __init__(
        self,
        setting: Setting,
        online: VelocityModel,
        blocks: list[str],
        features: Literal["online", "teacher"] = "online",
        weight: Weight = 0.01,
        width: PositiveInt = 64,
        optimizer: Callable[[nn.Module], Optimizer] | None = None,
        from_cycle: NonNegativeInt = 0,
        time: TimestepDensity | None = None,
        r1_weight: Weight = 0.0,
        r1_at: Literal["features", "x_t"] = "features",
        data: Data | None = None,
    ) -> None:
        super().__init__()
        self.setting, self.blocks, self.weight, self.from_cycle = setting, list(blocks), weight, from_cycle
        self.time, self.r1_weight, self.r1_at = time or setting.time, r1_weight, r1_at
        self.make_optimizer, self.images = optimizer or setting.optimizer, RealImages(setting, data)
        net = online if features == "online" else setting.teacher
        assert net is not None
        self.unregistered = (net,)  # in a tuple: its weights are not the discriminator's
        condition = setting.data.conditions(1, keyed_generator("widths", index=0))
        with torch.random.fork_rng():
            torch.manual_seed(setting.seed)
            self.discriminator = Discriminator(feature_widths(net, blocks, condition), width)
        self.descent = Descent("discriminator", 2, setting.schedule.clip)

    def configure(self):
        """The heads' optimizer and its schedule, which counts the discriminator's own turns."""
        optimizer, s = self.make_optimizer(self.discriminator), self.setting.schedule
        return optimizer, scheduled(optimizer, max(1, s.cycles - self.from_cycle), s.warmup, s.decay)

    @property
    def net(self) -> VelocityModel:
        return self.unregistered[0]

    def features(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> list[Tensor]:
        return read_features(self.net, self.blocks, x_t, t, condition)

    def seen(self, condition: Tensor | None) -> Tensor | None:
        """What the discriminator is told of a generated image: as much as it could be told of a real one."""
        return (
            condition if condition is None or self.images.told else unwrap_guidance(self.net).unconditional(condition)
        )

    def turn(self, method: Method, x_0: Tensor, condition: Tensor | None, cycle: int) -> dict[str, Tensor]:
        """One update of the heads; x_0 and condition are the generator's, detached. Nothing before from_cycle."""
        if cycle < self.from_cycle:
            return {}
        noise, condition = method.noise("discriminator", cycle), self.seen(condition)
        real_x_0, label = method.draw(self.images.data, noise)
        label = label if self.images.told and condition is not None else condition
        real_x_t, _, real_t = self.setting.noisy(real_x_0, self.time, noise)
        x_t, _, t = self.setting.noisy(x_0, self.time, noise)
        tensors = real_x_t, real_t, label, x_t, t, condition
        parts = Summed(self.part, method.schedule.micro_batches, *tensors)
        norm = self.descent(method, *parts.losses())
        return parts.told | {"discriminator_grad_norm": norm}

    def part(
        self, real_x_t: Tensor, real_t: Tensor, label: Tensor | None, x_t: Tensor, t: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Told]:
        """The discriminator's loss on some samples, and what to log of them."""
        real, penalty = self.real_logits(real_x_t, real_t, label)
        with torch.no_grad():
            features = self.features(x_t, t, condition)
        fake = self.discriminator(features).to(x_t.dtype)
        loss = losses.real_loss(real).mean() + losses.fake_loss(fake).mean() + self.r1_weight / 2 * penalty.mean()
        told = {"discriminator_loss": loss, "logit_real": real.mean(), "logit_fake": fake.mean()}
        return loss, told | ({"r1": penalty.mean()} if self.r1_weight else {})

    def real_logits(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of real images, (batch, k), and R1, (batch,) or 0."""
        at_x_t = self.r1_weight > 0 and self.r1_at == "x_t"
        x_t = x_t.detach().requires_grad_(at_x_t)
        with torch.set_grad_enabled(at_x_t), sdpa_kernel(SDPBackend.MATH) if at_x_t else nullcontext():
            features = self.features(x_t, t, condition)
        inputs = [x_t] if at_x_t else [f.requires_grad_(self.r1_weight > 0) for f in features]
        logits = self.discriminator(features).to(x_t.dtype)
        return logits, losses.r1(logits, *inputs) if self.r1_weight else logits.new_zeros(())

    def generator_turn(
        self, method: Method, x_0: Tensor, condition: Tensor | None, cycle: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What to add to the generator's loss, (), and what to log; 0 and nothing before from_cycle."""
        if cycle < self.from_cycle:
            return x_0.new_zeros(()), {}
        x_t, _, t = self.setting.noisy(x_0, self.time, method.noise("adversary", cycle))
        return rooted(self.generator_part, method.schedule.micro_batches, [x_t], t, self.seen(condition))

    def generator_part(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> tuple[Tensor, Told]:
        loss = losses.real_loss(self.discriminator(self.features(x_t, t, condition)).to(x_t.dtype)).mean()
        return self.weight * loss, {"adversarial_loss": loss.detach()}
