"""A GAN term beside FGM's loss, for detail of high frequency.

    discriminator update    softplus(-l(x_t)) on real x_0 + softplus(l(x_t)) on generated ones + (r1_weight / 2) R1
    generator update        weight softplus(-l(x_t)), added to FGM's loss, through x_t only

l are a discriminator's logits (networks/discriminator.py) on features of the online network or the teacher, at fresh t
and eps. The discriminator update moves the heads only, whereas DMD2 trains the online network with them
(arXiv 2405.14867), so its loss needs no weight. R1 is taken at the features, as in ADD (arXiv 2311.17042), or at x_t,
through the whole network and twice. Before start_step the term does not exist and nothing is drawn for it.

Logged from start_step on: `discriminator_loss`, 2 log 2 = 1.386 if real and generated cannot be told apart, 0 if the heads
never err; `logit_real`, `logit_fake`, means of the discriminator update (far apart: it has won); `r1`;
`adversarial_loss`, softplus(-l) of the generator update without its weight; `discriminator_grad_norm` before clipping.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

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
from fgm.training.module import Loss, Scalars, TrainingModule
from fgm.training.real_images import RealImages, TeacherImages
from fgm.utils.random import keyed_generator
from fgm.utils.validation import validated

Weight = NonNegativeFloat


@validated
class GANTerm(nn.Module):
    """The discriminator of a distillation and its two losses.

    Args:
        module: the distillation.
        teacher, online: its velocity networks; `features` says whose features are read.
        blocks: names of the submodules whose outputs are the features, a head on each.
        weight: of the term in the generator's loss.
        width: of the heads' hidden layer.
        optimizer: of the heads; the generator's if None.
        start_step: the first step with a discriminator.
        times: density of t; the distillation's if None.
        r1_weight: of the gradient penalty on real images.  r1_at: the inputs of that gradient.
        data: real images; the distillation's if None. If they have no condition, the discriminator never sees one.
        teacher_samples: number of samples of the teacher's ODE that stand in for real images, see TeacherImages; 0: none.
    """

    def __init__(
        self,
        module: TrainingModule,
        teacher: VelocityModel,
        online: VelocityModel,
        blocks: list[str],
        features: Literal["online", "teacher"] = "online",
        weight: Weight = 0.01,
        width: PositiveInt = 64,
        optimizer: Callable[[nn.Module], Optimizer] | None = None,
        start_step: NonNegativeInt = 0,
        times: TimestepDensity | None = None,
        r1_weight: Weight = 0.0,
        r1_at: Literal["features", "x_t"] = "features",
        data: Data | None = None,
        teacher_samples: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.blocks, self.weight, self.start_step = list(blocks), weight, start_step
        self.make_optimizer: Any = optimizer or module.make_optimizer
        self.times, self.r1_weight, self.r1_at = times or module.times, r1_weight, r1_at
        if data and teacher_samples:
            raise ValueError(
                "a discriminator sees real images or the teacher's samples: leave out data or teacher_samples"
            )
        real = (
            TeacherImages(module, teacher_samples) if teacher_samples else RealImages(data or module.data, module.data)
        )
        self.images: Any = real
        self.unregistered = (module, online if features == "online" else teacher)  # not a part of the discriminator
        condition = module.data.conditions(1, keyed_generator("widths", index=0))
        with torch.random.fork_rng():
            torch.manual_seed(module.seed)
            self.discriminator = Discriminator(feature_widths(self.net, blocks, condition), width)

    @property
    def module(self) -> TrainingModule:
        return self.unregistered[0]

    @property
    def net(self) -> VelocityModel:
        """The network whose features are read."""
        return self.unregistered[1]

    def optimizer_and_schedule(self) -> dict[str, Any]:
        return self.module.scheduled(self.make_optimizer, self.discriminator, start_step=self.start_step)

    def update(self, x_0: Tensor, condition: Tensor | None, step: int) -> Scalars:
        """Update the heads on generated x_0, detached, and as many real images; do nothing before start_step."""
        if step < self.start_step:
            return {}
        module, rng, scalars = self.module, self.module.rng("discriminator", step), {}
        condition = self.shown(condition)
        real_x_0, real_condition = module.draw_data(self.images.data, rng)
        if not self.images.have_conditions or condition is None:
            real_condition = condition
        real_x_t, _, real_t = module.noised(real_x_0, self.times, rng)
        x_t, _, t = module.noised(x_0, self.times, rng)
        batch = (real_x_t, real_t, real_condition, x_t, t, condition)
        with self.net.adapter_active():
            norm = module.update("discriminator", module.in_parts(self.discriminator_loss, scalars, *batch))
        return scalars | {"discriminator_grad_norm": norm}

    def add_generator_gradient(self, x_0: Tensor, condition: Tensor | None, step: int, scalars: Scalars) -> None:
        """Add the gradient of the generator's term to x_0.grad, and what to log to scalars."""
        if step < self.start_step:
            return
        x_t, _, t = self.module.noised(x_0, self.times, self.module.rng("adversary", step))
        leaf = x_t.detach().requires_grad_()
        for loss in self.module.in_parts(self.generator_loss, scalars, leaf, t, self.shown(condition)):
            with self.net.adapter_active():
                loss.backward(inputs=[leaf])
        x_t.backward(leaf.grad, inputs=[x_0])

    def discriminator_loss(
        self, real_x_t: Tensor, real_t: Tensor, real_condition: Tensor | None,
        x_t: Tensor, t: Tensor, condition: Tensor | None,
    ) -> Loss:  # fmt: skip
        real, penalty = self.real_logits(real_x_t, real_t, real_condition)
        with torch.no_grad():
            features = read_features(self.net, self.blocks, x_t, t, condition)
        fake = self.discriminator(features).to(x_t.dtype)
        loss = losses.real_loss(real).mean() + losses.fake_loss(fake).mean() + self.r1_weight / 2 * penalty.mean()
        logged = {"discriminator_loss": loss, "logit_real": real.mean(), "logit_fake": fake.mean()}
        return loss, logged | ({"r1": penalty.mean()} if self.r1_weight else {})

    def generator_loss(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Loss:
        features = read_features(self.net, self.blocks, x_t, t, condition)
        loss = losses.real_loss(self.discriminator(features).to(x_t.dtype)).mean()
        return self.weight * loss, {"adversarial_loss": loss}

    def real_logits(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return logits of real images, (batch, k), and R1, (batch,) or 0."""
        at_x_t = self.r1_weight > 0 and self.r1_at == "x_t"
        x_t = x_t.detach().requires_grad_(at_x_t)
        with torch.set_grad_enabled(at_x_t), sdpa_kernel(SDPBackend.MATH) if at_x_t else nullcontext():
            features = read_features(self.net, self.blocks, x_t, t, condition)
        inputs = [x_t] if at_x_t else [f.requires_grad_(self.r1_weight > 0) for f in features]
        logits = self.discriminator(features).to(x_t.dtype)
        return logits, losses.r1(logits, *inputs) if self.r1_weight else logits.new_zeros(())

    def shown(self, condition: Tensor | None) -> Tensor | None:
        """Return the condition of a generated image as the discriminator sees it: none if real images have none."""
        return (
            condition
            if condition is None or self.images.have_conditions
            else unwrap_guidance(self.net).unconditional(condition)
        )
