"""The two turns of a distillation's cycle: what each computes, on which samples, and whose weights it moves.

    online turn       |v - c|^2                   x_0 detached; moves the online network alone
    generator turn    w(t) (lambda_1 L_1 + L_2)   through x_t into u, v and c; moves the generator alone
                      plus the GAN term, where there is one

Every backward runs while the network that it goes through is active, see Velocity.active().
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from fgm import losses
from fgm.networks import Velocity
from fgm.networks.generator import FewStepGenerator
from fgm.networks.guidance import Guidance, guided_pair
from fgm.times import TimeDensity
from fgm.training.adversary import Adversary
from fgm.training.method import Method
from fgm.training.micro_batches import InTurn, Summed, Told, in_turn, rooted, slices
from fgm.training.objective import Objective
from fgm.training.real_data import RealData
from fgm.training.two_stage import Branch


class Turns(Method):
    """The turns, and what they need of a distillation.

    Attributes:
        generator, online: the networks that are trained; the teacher is unregistered[0].
        objective: the generator's.
        guidance: where the teacher's scale stands, see guidance.py.
        online_time: density of t in online turns.
        adversary, real_data: how real images are used, if they are.
        descents: of generator, online network and discriminator.
    """

    generator: FewStepGenerator
    online: Velocity
    unregistered: tuple[Velocity, ...]
    objective: Objective
    guidance: Guidance
    online_time: TimeDensity
    adversary: Adversary | None
    real_data: RealData | None

    @property
    def teacher(self) -> Velocity:
        return self.unregistered[0]

    def velocities(self) -> tuple[Velocity, Velocity]:
        """Teacher and online network, under guidance."""
        return guided_pair(self.guidance, self.teacher, self.online)

    def online_turn(self, x_0: Tensor, condition: Tensor | None, index: int) -> dict[str, Tensor]:
        x_t, c, t = self.setting.noisy(x_0, self.online_time, self.noise("online", index))
        real = self.real_data.drawn(self, index) if self.real_data else None
        parts = Summed(self.online_part, self.schedule.micro_batches, x_t, c, t, condition, *(real or [None] * 4))
        with self.velocities()[1].active():
            norm = self.descents[1](self, *parts.losses())
        return parts.told | {"online_grad_norm": norm}

    def online_part(
        self, x_t: Tensor, c: Tensor, t: Tensor, condition: Tensor | None, *real: Tensor | None
    ) -> tuple[Tensor, Told]:
        v = self.velocities()[1](x_t, t, condition).to(x_t.dtype)
        matched = self.real_data.online_loss(v, c, *real) if self.real_data else losses.flow_matching(v, c).mean()
        return matched, {"online_loss": matched}

    def generator_turn(self, x_0: Tensor, condition: Tensor | None, cycle: int) -> dict[str, Tensor]:
        """x_0 carries the generator's graph, or none where the batch comes in parts."""
        parts = self.schedule.micro_batches
        x_0 = x_0 if parts == 1 else x_0.detach().requires_grad_()
        x_t, c, t = self.setting.noisy(x_0, self.setting.time, self.noise("generator", cycle))
        root, told = rooted(self.generator_part, parts, (x_t, c), x_0.detach(), t, condition)
        term, also = self.gan_term(x_0, condition, cycle)
        with self.generator.active():
            norm = self.descents[0](self, *self.through_generator(root + term, x_0, cycle))
        return also | told | {
            "sample_mean": x_0.detach().mean(), "sample_std": x_0.detach().std(), "generator_grad_norm": norm,
        }  # fmt: skip

    def generator_part(
        self, x_t: Tensor, c: Tensor, x_0: Tensor, t: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Told]:
        teacher, online = (Branch(net, t, condition) for net in self.velocities())
        u, v, loss, root = self.objective(x_0, x_t, c, teacher, online)
        return root, {"mismatch": losses.squared_norm(u - v).detach().mean(), "fgm_loss": loss.detach()}

    def through_generator(self, root: Tensor, x_0: Tensor, cycle: int) -> InTurn:
        """What to descend for the gradient of root by the generator's weights: root, or a part at a time."""
        parts = self.schedule.micro_batches
        if parts == 1:
            return (root,)
        (d_x_0,) = torch.autograd.grad(root, x_0)

        def part(where: slice) -> Tensor:
            return (self.generator(*self.latents(cycle, where)) * d_x_0[where]).sum()

        return in_turn(part, slices(len(x_0), parts))

    @abstractmethod
    def latents(self, cycle: int, where: slice) -> tuple[Any, ...]:
        """The cycle's z, conditions and noises between steps, of some of its samples."""

    def gan_term(self, x_0: Tensor, condition: Tensor | None, cycle: int) -> tuple[Any, dict[str, Tensor]]:
        """What to add to the root, and what to log; in two stages or parts <x_0, dL/dx_0>, its own graph gone."""
        if self.adversary is None:
            return 0.0, {}
        if not self.objective.two_stage and self.schedule.micro_batches == 1:
            return self.adversary.generator_turn(self, x_0, condition, cycle)
        leaf = x_0.detach().requires_grad_()
        with self.adversary.net.active():
            loss, told = self.adversary.generator_turn(self, leaf, condition, cycle)
            return ((x_0 * torch.autograd.grad(loss, leaf)[0]).sum() if told else 0.0), told
